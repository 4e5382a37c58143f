"""XMP sidecars written: those that exist, new ones, properties put in, and taken out again.

In: photos, properties by name, the bytes of a sidecar. Out: bytes; what stood there before stays as
it was, byte for byte. ValueError with the reason where that cannot be done.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from geophoto.containers import MAX_XMP_BYTES
from geophoto.packets import parse_xmp
from geophoto.positions import fix_of_xmp
from geophoto.sidecars import SIDECAR_NAMES, match, read_sidecar

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
SPACES = {"exif": "http://ns.adobe.com/exif/1.0/",
          "photoshop": "http://ns.adobe.com/photoshop/1.0/"}  # fmt: skip
MARKS = ("exif:GPSLatitude", "exif:GPSLongitude", "exif:GPSHPositioningError",
         "exif:GPSProcessingMethod")  # fmt: skip

# ---------------------------------------------------------------- those that exist


class Sidecars:
    """The XMP sidecars beside the photos of a library, every folder listed once."""

    def __init__(self, photos: Iterable[str]) -> None:
        self.photos: dict[Path, list[str]] = {}  # names by folder
        for file in map(Path, photos):
            self.photos.setdefault(file.parent, []).append(file.name)
        self.listed: dict[Path, dict[str, list[str]]] = {}  # names by their letters' case folded
        self.matched: dict[tuple[Path, Path], dict[str, tuple[str, str]]] = {}

    def there(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self.listed:
            found = self.listed[folder] = {}
            for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
                if name.lower().endswith(".xmp"):
                    found.setdefault(name.casefold(), []).append(name)
        return self.listed[folder]

    def place_known(self, folder: Path, name: str) -> bool:
        """Whether a sidecar that may be a photo's, <name>.<ext>.xmp or <stem>.xmp, holds a position
        of this very photo, be it half a one or an estimate."""
        for spelled in {f"{name}.xmp".casefold(), f"{os.path.splitext(name)[0]}.xmp".casefold()}:
            for sidecar in self.there(folder).get(spelled, ()):
                fix = fix_of_xmp(read_sidecar(str(folder / sidecar), name)[0], "sidecar")
                if fix.place is not None or fix.warnings:
                    return True
        return False

    def own(self, folder: Path, file: Path) -> Path | None:
        """The sidecar in a folder that is this photo's and not one of its siblings'."""
        about = folder, file.parent
        if about not in self.matched:
            names = [name for some in self.there(folder).values() for name in some]
            self.matched[about] = match(self.photos[file.parent], names)
        own = self.matched[about].get(file.name, ("", ""))[0]
        if not own:
            return None
        if own.casefold() != f"{file.name}.xmp".casefold():
            content = (folder / own).read_bytes()[:MAX_XMP_BYTES]
            told = parse_xmp(content, {"photoshop:SidecarForExtension"})[0]
            meant = told.get("photoshop:SidecarForExtension", "").lstrip(".").casefold()
            if meant not in ("", file.name.rpartition(".")[2].casefold()):
                return None
        return folder / own


# ---------------------------------------------------------------- new


def xmp_degrees(degrees: float, letters: str) -> str:
    """GPSCoordinate of XMP (ISO 16684-1): degrees, minutes to 2 mm, letter: 48,30.500000N."""
    millionths = round(abs(degrees) * 60e6)
    whole, rest = divmod(millionths, 60_000_000)
    minutes, fraction = divmod(rest, 1_000_000)
    return f"{whole},{minutes:02d}.{fraction:06d}{letters[1] if degrees < 0 else letters[0]}"


def description(properties: dict[str, str], about: str, rdf: str) -> str:
    """An rdf:Description of its own with the properties, as text; `rdf` is RDF's prefix there."""
    spaces = "".join(
        f" xmlns:{name}={quoteattr(uri)}"
        for name, uri in SPACES.items() if any(key.startswith(name + ":") for key in properties)
    )  # fmt: skip
    lines = "".join(f"   <{name}>{escape(value)}</{name}>\n" for name, value in properties.items())
    head = f"<{rdf}:Description {rdf}:about={quoteattr(about)}{spaces}>"
    return f"{head}\n{lines}  </{rdf}:Description>\n"


def new_sidecar(properties: dict[str, str]) -> bytes:
    packet = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        f' <rdf:RDF xmlns:rdf="{RDF}">\n  {description(properties, "", "rdf")} </rdf:RDF>\n'
        '</x:xmpmeta>\n<?xpacket end="w"?>\n'
    )
    return packet.encode()


# ---------------------------------------------------------------- existing


def parse_tree(content: bytes):
    """lxml's tree of a sidecar; ValueError for what is no XML or declares a document type."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        root = etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(f"no whole XML ({error.msg})") from error
    if root.getroottree().docinfo.doctype:
        raise ValueError("it declares a document type")
    return root


def encoding_of(content: bytes) -> str:
    """UTF-8, or UTF-16 by its mark; ValueError for any other that is declared."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16-le" if content[:2] == b"\xff\xfe" else "utf-16-be"
    declared = re.match(rb"\s*<\?xml[^>]*encoding\s*=\s*[\"']([\w.-]+)", content[:200])
    if declared and declared[1].lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        raise ValueError(f"its encoding is {declared[1].decode()}")
    return "utf-8"


def extend_sidecar(content: bytes, properties: dict[str, str]) -> tuple[bytes, str]:
    """A sidecar with one more rdf:Description before the end of its RDF, all else byte for byte
    as it was, and the text put in. ValueError where that cannot be done."""
    root = parse_tree(content)
    bags = [node for node in root.iter(f"{{{RDF}}}RDF")]
    if len(bags) != 1:
        raise ValueError("it holds no RDF" if not bags else "it holds several RDFs")
    told = list(bags[0].iterchildren(f"{{{RDF}}}Description"))
    if any(bags[0].iterchildren(*(f"{{{RDF}}}{name}" for name in ("Bag", "Seq", "Alt")))):
        raise ValueError("its RDF holds more than descriptions")
    about = next((node.get(f"{{{RDF}}}about") for node in told), "") or ""
    present = parse_xmp(content[:MAX_XMP_BYTES], SIDECAR_NAMES)[0]
    if clash := [name for name in MARKS if name in present]:
        raise ValueError(f"it has {clash[0]} already")
    fresh = {name: value for name, value in properties.items() if name not in present}
    code, prefix = encoding_of(content), bags[0].prefix
    written = content.decode(code)
    ends = list(re.finditer(rf"</{re.escape(prefix)}:RDF\s*>" if prefix else r"</RDF\s*>", written))
    if not ends or not prefix:
        raise ValueError("its RDF has no end that a description could go before")
    block = " " + description(fresh, about, prefix)
    at = ends[-1].start()
    extended = (written[:at] + block + written[at:]).encode(code)
    again = parse_tree(extended)
    ours = list(next(again.iter(f"{{{RDF}}}RDF")).iterchildren())[-1]
    if len(ours) != len(fresh) or len(list(again.iter())) != len(list(root.iter())) + 1 + len(
        fresh
    ):
        raise ValueError("its RDF ends inside something else")  # in a comment, or CDATA
    return extended, block


def cut_block(content: bytes, block: str, properties: dict[str, str]) -> bytes | None:
    """A sidecar without what was put into it: the text itself, or, where another program wrote the
    file anew, the properties that still have our values; None where there is nothing of ours."""
    from lxml import etree

    code = encoding_of(content)
    written = content.decode(code)
    if block and written.count(block) == 1:
        return written.replace(block, "").encode(code)
    root, removed = parse_tree(content), 0
    wanted = {f"{{{SPACES[name.partition(':')[0]]}}}{name.partition(':')[2]}": value
              for name, value in properties.items()}  # fmt: skip
    method = f"{{{SPACES['exif']}}}GPSProcessingMethod"
    for node in list(root.iter(f"{{{RDF}}}Description")):
        inside = {child.tag: (child.text or "").strip() for child in node if len(child) == 0}
        if (node.get(method) or inside.get(method)) != wanted.get(method):
            continue
        for name, value in wanted.items():
            if node.get(name) == value:
                del node.attrib[name]
                removed += 1
            for child in [c for c in node if c.tag == name and inside.get(name) == value]:
                node.remove(child)
                removed += 1
    if not removed:
        return None
    return etree.tostring(root.getroottree(), encoding="utf-8")
