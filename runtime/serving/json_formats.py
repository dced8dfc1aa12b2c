"""String formats of JSON Schema as regular expressions, where llguidance 1.9 accepts more than the format does.

Leap seconds, and host names with labels that are encoded or reserved (xn--), are left out.
"""

from typing import Any

_LEAP_YEAR = r"([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
_DAY = r"(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
_DATE = rf"([0-9]{{4}}-({_DAY})|{_LEAP_YEAR}-02-29)"
_HOUR = r"([01][0-9]|2[0-3])"
_TIME = rf"{_HOUR}:[0-5][0-9]:[0-5][0-9](\.[0-9]+)?([Zz]|[+-]{_HOUR}:[0-5][0-9])"
_ANY, _HYPHEN = "[0-9A-Za-z]", "[0-9A-Za-z-]"
# Up to 63 characters, without hyphens at both the third and the fourth.
_LABEL = f"{_ANY}({_HYPHEN}?{_ANY}|{_HYPHEN}{{2}}{_ANY}|{_HYPHEN}({_ANY}{_HYPHEN}|-{_ANY}){_HYPHEN}{{0,58}}{_ANY})?"
PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}[Tt]{_TIME}$",
    "hostname": rf"^{_LABEL}(\.{_LABEL})*$",
}
LONGEST_HOST_NAME = 253


def spell_out_format(node: dict[str, Any]) -> None:
    """Replace the schema object's format, if it is one of PATTERNS, by its pattern."""
    form = node.get("format")
    if not isinstance(form, str) or form not in PATTERNS:
        return
    del node["format"]
    rule: dict[str, Any] = {"pattern": PATTERNS[form]}
    if form == "hostname":
        rule["maxLength"] = LONGEST_HOST_NAME
    if rule.keys() & node.keys():
        node["allOf"] = [*node.get("allOf", []), rule]
    else:
        node.update(rule)
