"""How many prompt tokens a step takes beside sequences that decode."""

# A step with prompt tokens takes at most so many times as long as one without.
SLOWDOWN = 2
# Steps with prompt tokens until a length that took longer is tried again.
PATIENCE = 100


class MixedChunk:
    """Doubles as long as sequences that decode wait at most SLOWDOWN times as long for their tokens, up to `most`.

    Not below `least`, however long that takes: a prompt has to end some day. What steps without prompts take is a
    running mean over whatever sequences there were.
    """

    def __init__(self, least: int, most: int) -> None:
        self.length = least
        self._least, self._most = least, max(least, most)
        self._decode_s: float | None = None
        self._wait = 0

    def note_step(self, prompt_tokens: int, seconds: float) -> None:
        """After each step in which sequences decode, without drafts."""
        if not prompt_tokens:
            before = seconds if self._decode_s is None else self._decode_s
            self._decode_s = before + (seconds - before) / 4
        elif self._decode_s is not None:
            self._adapt(prompt_tokens, seconds, self._decode_s)

    def _adapt(self, prompt_tokens: int, seconds: float, decode_s: float) -> None:
        if seconds > SLOWDOWN * decode_s:
            self.length, self._wait = min(self.length, max(self._least, prompt_tokens // 2)), PATIENCE
        elif prompt_tokens < self.length:
            return  # the end of a prompt
        elif self._wait:
            self._wait -= 1
        elif 2 * seconds - decode_s <= SLOWDOWN * decode_s:  # what twice as many should take
            self.length = min(self._most, 2 * self.length)
