"""XMP packets and IPTC blocks: properties, numbers and angles as they are written there."""

import pytest
from exif_files import iptc_block, resource, xmp_of
from hypothesis import given, settings
from hypothesis import strategies as st

from geophoto import packets
from geophoto.containers import Bytes

# ---------------------------------------------------------------- xmp


@pytest.mark.parametrize("as_elements", [False, True])
def test_properties_are_found_by_their_space_whatever_its_prefix(as_elements):
    packet = xmp_of({"exif:GPSLatitude": "48,30.0N", "tiff:Make": "Maker", "xmp:Rating": "5"},
                    as_elements)  # fmt: skip
    wanted = {"exif:GPSLatitude", "tiff:Make", "photoshop:DateCreated"}
    right = {"exif:GPSLatitude": "48,30.0N", "tiff:Make": "Maker"}
    assert packets.parse_xmp(packet, wanted) == (right, True)
    renamed = packet.replace(b"exif:", b"ns1:").replace(b":exif=", b":ns1=")
    assert packets.parse_xmp(renamed, wanted) == (right, True)
    again = b'<a xmlns:exif="u"><b xmlns:exif="http://ns.adobe.com/exif/1.0/"/></a><x:xmpmeta'
    assert packets.parse_xmp(packet.replace(b"<x:xmpmeta", b"<y>" + again), wanted)[0] == right
    foreign = packet.replace(b"/exif/1.0/", b"/other/1.0/")
    assert packets.parse_xmp(foreign, wanted) == ({"tiff:Make": "Maker"}, True)
    for code in ("utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"):
        again = packet.decode().lstrip("\ufeff").encode(code)
        assert packets.parse_xmp(again, wanted) == (right, True), code


def test_what_stands_before_damage_is_kept_and_entities_are_refused():
    packet = xmp_of({"exif:GPSLatitude": "1", "exif:GPSLongitude": "2"}, as_elements=True)
    wanted = {"exif:GPSLatitude", "exif:GPSLongitude"}
    found, whole = packets.parse_xmp(packet[: packet.index(b"<exif:GPSLongitude>")], wanted)
    assert (found, whole) == ({"exif:GPSLatitude": "1"}, False)
    for text in (b"", b"hello", b"<html><body/></html>", b"\0" * 100, b"<a", b"{}"):
        assert packets.parse_xmp(text, wanted) == ({}, False)
    declared = b'<!DOCTYPE x [<!ENTITY a "aaa">]>' + packet
    assert packets.parse_xmp(declared, wanted) == ({}, False)
    many = packet.replace(b"</rdf:Description>", b"<a/>" * 60_000 + b"</rdf:Description>")
    assert packets.parse_xmp(many, wanted)[0] == {"exif:GPSLatitude": "1", "exif:GPSLongitude": "2"}
    assert not packets.parse_xmp(many, wanted)[1]


ANGLES = [  # written, reference beside it, degrees and letter of a latitude
    ("48,30.5N", None, 48.508333333, "N"), ("48,30,30S", None, 48.508333333, "S"),
    ("33.85", "S", 33.85, "S"), ("-33.85", "S", 33.85, "S"), ("-33.85S", None, 33.85, "S"),
    ("-33.85", None, 33.85, "S"), ("+33.85", None, 33.85, "N"), ("33.85", None, 33.85, "N"),
    ("33.85S", "N", 33.85, "S"), ("33.85s", None, 33.85, "S"), ("33.85", "south", 33.85, "S"),
    ("33.85", "?", 33.85, "N"), ("-33.85", "", 33.85, "S"), ("S 33 51 0", None, 33.85, "S"),
    ("48° 30' 30\" N", None, 48.508333333, "N"), ("5e-1", None, 0.5, "N"),
    ("-5E-1", "S", 0.5, "S"), ("0,0.0N", None, 0, "N"), ("48,60.0N", None, 49, "N"),
    ("48,8566N", None, None, "N"), ("", None, None, "N"), ("north", None, None, "N"),
    ("1,2,3,4N", None, 1.034166667, "N"), ("nan", "N", None, "N"), ("1/0", None, None, "N"),
    ("48/1,30/1,3050/100", "N", 48.508472222, "N"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "reference", "degrees", "letter"), ANGLES)
@pytest.mark.parametrize("letters", ["NS", "EW"])
def test_letter_before_reference_before_sign(written, reference, degrees, letter, letters):
    if letters == "EW":  # the same on the other axis
        swap = str.maketrans("NSns", "EWew")
        letter = letter.translate(swap)
        if "north" in (written, reference) or "south" in (written, reference):
            reference, written = reference and "west", "" if written == "north" else written
        else:
            written = written if written == "nan" else written.translate(swap)
            reference = reference and reference.translate(swap)
    found, half = packets.xmp_angle(written, reference, letters)
    assert half == letter
    assert found is None if degrees is None else found == pytest.approx(degrees, abs=1e-8)


@settings(max_examples=200, deadline=None)
@given(st.floats(-180, 180), st.sampled_from(["letter", "reference", "sign", "both", "minutes"]))
def test_every_spelling_of_a_longitude_says_the_same(lon, spelling):
    half = "W" if lon < 0 else "E"
    whole, rest = divmod(abs(lon), 1)
    written, reference = {
        "letter": (f"{abs(lon):.9f}{half}", None), "reference": (f"{abs(lon):.9f}", half),
        "sign": (f"{lon:.9f}", None), "both": (f"{lon:.9f}", half),
        "minutes": (f"{whole:.0f},{rest * 60:.8f}{half}", None),
    }[spelling]  # fmt: skip
    degrees, letter = packets.xmp_angle(written, reference, "EW")
    assert degrees == pytest.approx(abs(lon), abs=1e-8)
    assert letter == half or abs(lon) < 1e-8


@pytest.mark.parametrize(
    ("written", "value"),
    [("926/10", 92.6), ("92.6", 92.6), ("-92.6", -92.6), ("9.26e1", 92.6), (" 12 m", 12),
     ("1/0", None), ("0/0", None), ("", None), (None, None), ("high", None), ("1e999", None)],
)  # fmt: skip
def test_numbers(written, value):
    assert packets.xmp_number(written) == value


# ---------------------------------------------------------------- iptc


def test_blocks_and_resources_end_where_they_are_damaged():
    block = iptc_block(_5="title", _55="20110203", _60="040506+0100")
    assert packets.read_iptc(block) == {55: "20110203", 60: "040506+0100"}
    for size in range(len(block)):
        found = packets.read_iptc(block[:size])
        assert found.keys() <= {55, 60}
    assert packets.read_iptc(b"\x1c\x02\x37\xff\xff" + block) in ({}, {55: ""})
    whole = resource(1000, b"abc", b"odd") + resource(0x0404, block)
    assert packets.iptc_of_resources([Bytes(whole)]) == block
    assert packets.iptc_of_resources([Bytes(whole[:9]), Bytes(whole[9:])]) == block
    assert packets.iptc_of_resources([]) == b""
    endless = (b"8BIM" + bytes(8)) * 100_000
    assert packets.iptc_of_resources([Bytes(endless)]) == b""
    assert packets.iptc_date({55: "20110203"}, packets.CREATED) is None
    assert packets.iptc_date({62: "20110203", 63: "040506"}, packets.DIGITISED)
