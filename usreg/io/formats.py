"""Which kind of volume a file is: by its first bytes where they tell, else by its name."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError

WAY_OUT = "copy or convert the file again"
"""What to do about a file that is damaged."""

VALID = (
    "a volume is needed: NIfTI (.nii, .nii.gz), Analyze or NIfTI pairs (.hdr, .img), MGH (.mgh, .mgz), "
    "MetaImage (.mha, .mhd), NRRD (.nrrd, .nhdr), MINC (.mnc) or a folder of DICOM files"
)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: for messages.
        suffixes: what its files are called.
        itk: the name of ITK's reader, None where nibabel reads it.
    """

    name: str
    suffixes: tuple[str, ...]
    itk: str | None = None


NIFTI = Kind("NIfTI", (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz"))
ANALYZE = Kind("Analyze", (".hdr", ".img", ".hdr.gz", ".img.gz"))
MGH = Kind("MGH", (".mgh", ".mgz"))
MINC1 = Kind("MINC 1", (".mnc",))
MINC2 = Kind("MINC 2", (".mnc",), "MINCImageIO")
METAIMAGE = Kind("MetaImage", (".mha", ".mhd"), "MetaImageIO")
NRRD = Kind("NRRD", (".nrrd", ".nhdr"), "NrrdImageIO")
DICOM = Kind("DICOM", (".dcm", ".dicom", ".ima"), "GDCMImageIO")

_BY_NAME = (NIFTI, MGH, METAIMAGE, NRRD, MINC2, DICOM)  # the first that has the suffix
_FOREIGN = (  # first bytes of files that are no volumes with a header, or not one file
    (b"PK\x03\x04", "a zip archive (NumPy's .npz is one), which has no voxel size and no directions"),
    (b"\x93NUMPY", "a NumPy array, which has no voxel size and no directions"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"version https://git-lfs", "a pointer of Git LFS: the file itself was not downloaded (git lfs pull)"),
)
_HEAD = 560  # bytes: the header of NIfTI 2, the longest


def kind_of(path: Path) -> Kind:
    """The kind of a volume's file; a folder is DICOM.

    Raises:
        DataError: no such file, an empty one, another kind, or a name that says another kind than the content.
    """
    if path.is_dir():
        return DICOM
    if not path.exists():
        raise DataError(f"{path}: no such file; {VALID}")
    head = _head(_header_file(path))
    if not head:
        raise DataError(f"{path}: cannot be read: the file is empty; {WAY_OUT}")
    name, content = _by_name(path), _by_content(head)
    if content is ANALYZE and suffix_of(path) not in ANALYZE.suffixes:
        content = None  # NIfTI's header has the same size; one without its signature is damaged
    if content is None:
        for magic, what in _FOREIGN:
            if head.startswith(magic):
                raise DataError(f"{path}: cannot be read: it is {what}; {VALID}")
    if content is None and name is None:
        raise DataError(f"{path}: cannot be read: neither its name nor its content is known; {VALID}")
    if content is not None and content is not DICOM and suffix_of(path) not in content.suffixes:
        valid = " or ".join(content.suffixes)
        if content.itk is not None and is_gzip(path):
            raise DataError(f"{path}: cannot be read: it is {content.name}, gzip-compressed; decompress it (gunzip)")
        raise DataError(f"{path}: cannot be read: its content is {content.name} and its name is not; name it {valid}")
    return content or name or NIFTI


def suffix_of(path: Path) -> str:
    """The end of the name in lower case, with what comes before ``.gz``."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() + suffix if suffix == ".gz" else suffix


def is_gzip(path: Path) -> bool:
    """Whether the content is gzip-compressed, whatever the name says."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _header_file(path: Path) -> Path:
    """The file that holds the header: the voxels of a pair, ``.img``, have theirs in the ``.hdr`` beside them."""
    suffix = suffix_of(path)
    if suffix not in (".img", ".img.gz"):
        return path
    header = path.with_name(path.name[: -len(suffix)] + suffix.replace("img", "hdr"))
    if not header.exists():
        raise DataError(f"{path}: cannot be read: its header {header.name} is missing; put it beside the file")
    return header


def _head(path: Path) -> bytes:
    """The first bytes, decompressed."""
    try:
        if not is_gzip(path):
            with path.open("rb") as file:
                return file.read(_HEAD)
        with gzip.open(path, "rb") as stream:
            return stream.read(_HEAD)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read, the file is cut short or corrupt ({error}); {WAY_OUT}") from error


def _by_name(path: Path) -> Kind | None:
    suffix = suffix_of(path)
    return next((kind for kind in _BY_NAME if suffix in kind.suffixes), None)


def _by_content(head: bytes) -> Kind | None:
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2"):
        return NIFTI
    if head[:4] in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c"):  # 348, the size of the header
        return ANALYZE
    if head.startswith(b"NRRD0"):
        return NRRD
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return MINC2
    if head[:4] in (b"CDF\x01", b"CDF\x02"):
        return MINC1
    if head[128:132] == b"DICM":
        return DICOM
    text = head[:200].lstrip()
    return METAIMAGE if text.startswith((b"ObjectType", b"NDims", b"Comment =")) else None
