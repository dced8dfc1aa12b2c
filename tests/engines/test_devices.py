"""Devices by name and by capability, each once and in order; a name that is not known gets the nearest."""

import pytest

from megrez.engines.devices import CAPABILITIES, devices_of, find_capabilities, spell
from megrez.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("rtx-4090", (89,)),
        ("sm_120", (120,)),
        ("SM89, RTX-5090", (89, 120)),
        ("sm_120,rtx-4090,l4,sm89", (89, 120)),
        ("orin,thor", (87, 110)),
    ],
)
def test_devices_are_found_by_name_and_by_capability(text: str, found: tuple[int, ...]) -> None:
    assert find_capabilities(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rtx4090", "unknown device 'rtx4090': did you mean rtx-4090? give one of t4, "),
        ("sm_88", "unknown device 'sm_88': "),
        ("sm_89,", "unknown device '': "),
        ("apple-m4", "or a capability of sm_75, "),
    ],
)
def test_an_unknown_device_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_capabilities(text)
    assert said in str(caught.value)


def test_every_name_is_the_device_it_says() -> None:
    for name, capability in CAPABILITIES.items():
        assert find_capabilities(name) == (capability,)
        assert name in devices_of([capability]).split(", ")


def test_capabilities_are_spelled_as_they_are_read() -> None:
    assert spell((89, 120)) == "sm_89, sm_120"
    assert find_capabilities(spell((89, 120))) == (89, 120)
