"""What benchmarks/speculation.py asks: to repeat or change a text that is given, and to write freely."""

from typing import Any

HARBOUR = (
    "The harbour at Kelmouth was rebuilt in 1887 after a storm had carried away the outer wall and eleven fishing "
    "boats. Its engineer, Margaret Oakes, used blocks of local granite, each weighing about four tons, which were "
    "lowered into place by a steam crane hired from Leith. The work took nineteen months and cost £14,200, a third of "
    "it paid by the county. On the day it opened, the first vessel to enter was the ketch Providence, loaded with "
    "coal, and the whole town came down to the quay to watch. The lighthouse at the end of the mole was added in 1903. "
    "Its lamp burned paraffin until 1931, when electric light was installed."
)
ORDER = (
    "Order 48213 was placed on 14 March 2024 by Helena Brandt, 27 Rosenweg, 8005 Zurich, Switzerland. She ordered two "
    'copies of "The Art of Bread" at 34.50 francs each, one cast-iron pan at 89.00 francs, and three linen towels at '
    "12.90 francs each. Delivery by courier costs 9.00 francs. The customer's e-mail address is "
    "helena.brandt@example.ch and her telephone number is +41 44 555 01 23. She asked for delivery after 18:00 and for "
    "the invoice to be sent to her company, Brandt Architekten AG."
)
CODE = """def load_config(path):
    with open(path) as handle:
        data = json.load(handle)
    if "name" not in data:
        raise ValueError("the configuration has no name")
    if "port" not in data:
        raise ValueError("the configuration has no port")
    data["port"] = int(data["port"])
    data["hosts"] = [host.strip() for host in data.get("hosts", "").split(",")]
    return data


def save_config(path, data):
    with open(path, "w") as handle:
        json.dump(data, handle, indent=2)"""
GREEDY: dict[str, Any] = {"temperature": 0.0}
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "seed": 1}
FIELDS = "order, date, customer, address, items, delivery, email, telephone"

# Kind, name, question, sampling.
PROMPTS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("given", "repeat", f"Repeat the following text exactly, word for word:\n\n{HARBOUR}", GREEDY),
    ("given", "repeat facts", f"Repeat this text exactly:\n\n{ORDER}", GREEDY),
    (
        "given",
        "edit",
        f"Copy this text, and only replace the name Kelmouth by Sandwick everywhere:\n\n{HARBOUR}",
        GREEDY,
    ),
    ("given", "edit code", f"Rename path to filename in this code and print all of it:\n\n```\n{CODE}\n```", GREEDY),
    ("given", "JSON", f"Extract this order to JSON with the fields {FIELDS}:\n\n{ORDER}", GREEDY),
    ("given", "JSON list", f"Convert this text to a JSON list of its sentences:\n\n{HARBOUR}", GREEDY),
    ("free", "story", "Write a short story about a lighthouse keeper who finds a letter in a bottle.", GREEDY),
    ("free", "explanation", "Explain how bread rises, for a curious child.", GREEDY),
    ("free", "history", "What are the main causes of the French Revolution?", GREEDY),
    ("free", "story, sampled", "Write a short story about a lighthouse keeper who finds a letter.", SAMPLED),
    ("free", "journey, sampled", "Describe a journey by train across a country that you invent.", SAMPLED),
    ("free", "e-mail, sampled", "Write an e-mail to a colleague about moving a meeting to next week.", SAMPLED),
]
