"""Machine-readable marking of generated video: every file says what it is.

Two places, so that common readers find one of them: the ``comment`` tag of the mp4, and an XMP packet with the IPTC
digital source type ``trainedAlgorithmicMedia``.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import quoteattr

from omnihuman_infer.__about__ import __version__

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
COMMENT = f"AI-generated video; digitalSourceType={SOURCE_TYPE}; made with omnihuman-infer {__version__}"

# The box type that the XMP specification (part 3, section 1.2.7.1) gives to MPEG-4 files.
XMP_BOX = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")


def xmp_packet(model: str) -> bytes:
    """XMP that names the source type, the tool and the model."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about=""'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        f" Iptc4xmpExt:DigitalSourceType={quoteattr(SOURCE_TYPE)}"
        f" Iptc4xmpExt:AISystemUsed={quoteattr(model)}"
        f" xmp:CreatorTool={quoteattr(f'omnihuman-infer {__version__}')}/>"
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def append_xmp(path: Path, model: str) -> None:
    """Append the XMP box to a finished mp4; players skip it."""
    packet = xmp_packet(model)
    size = 8 + len(XMP_BOX) + len(packet)
    with path.open("ab") as file:
        file.write(size.to_bytes(4, "big") + b"uuid" + XMP_BOX + packet)
