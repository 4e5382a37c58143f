"""Values of tags: text, numbers, angles."""

import pytest

from geophoto import tags

# ---------------------------------------------------------------- position


@pytest.mark.parametrize(
    ("value", "degrees"),
    [
        (b"52,50.5\0", 52.841666667), (b"52,00000,50,00000,34,01180\0", 52.842781056),
        (b"52/1 50/1 3401180/100000\0", 52.842781056), (b"52/1 50/1 0/0", 52.833333333),
        (b"52/0 0/1", None), (b"0/0 0/0 0/0", None), (b"52.5", 52.5), (b"52 30 36", 52.51),
        ((52.0, 30.0, 36.0), 52.51), ((-52.0, 30.0), 52.5), ((52.5,), 52.5), (b"", None),
        ((), None),
        (b"north", None), (None, None), ((float("nan"),) * 3, None), ((1.0, float("inf")), None),
    ],
)  # fmt: skip
def test_angles_as_rationals_text_and_commas(value, degrees):
    found = tags.angle(value)
    assert found is None if degrees is None else found == pytest.approx(degrees, abs=1e-8)


# ---------------------------------------------------------------- text and dates


def test_text_is_decoded_safely():
    assert tags.text(b"Caf\xc3\xa9\0rest") == "Café"
    assert tags.text(b"Caf\xe9 \0") == "Café"
    assert tags.text(b"a\x01b\n") == "a b"
    assert tags.text(b"Caf\xc3\xa9 \xfcber \xe2\x82\xac \x80") == "Café über € €"  # of both
    assert tags.text(b"M\xfcller & \xe5\xa4\xa7") == "Müller & 大"
    assert tags.text(b"cut \xe5\xa4") == "cut å¤" and tags.text(b"\x81\xff") == "�ÿ"
    assert tags.text(b"\0\0") is None and tags.text(b"   ") is None
    assert tags.text((67, 97)) == "Ca"
