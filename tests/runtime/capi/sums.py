"""Answers of FakeSession's rule, worked out without a session; not a test."""

VOCAB, STOPS = 267, (264, 261)


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def alone(prompt, count):
    """The sum rule, worked out without a session."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(sum(ids) % VOCAB)
        if ids[-1] in STOPS:
            break
    return ids[len(prompt) :]


def spoken(tokenizer, ids):
    return tokenizer.decode([one for one in ids if one not in STOPS], skip_special_tokens=False)
