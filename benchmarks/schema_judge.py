"""Validates answers with jsonschema, formats included: run by benchmarks/guided_schemas.py with a Python that has it.

Reads lines of JSON with `schema` and `answer`, a JSON text; writes "valid" for each, or what is wrong.
"""

import json
import sys
from typing import Any

JUDGE_FAILED = "the judge failed"


def verdict(schema: Any, answer: str) -> str:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    try:
        value = json.loads(answer)
    except ValueError as error:
        return f"not JSON: {error}"
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        errors = list(kind(schema, format_checker=kind.FORMAT_CHECKER).iter_errors(value))
    except Exception as error:
        return f"{JUDGE_FAILED}: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return " ".join(errors[0].message.split())[:160] if errors else "valid"


if __name__ == "__main__":
    for line in sys.stdin:
        found = json.loads(line)
        print(verdict(found["schema"], found["answer"]), flush=True)
