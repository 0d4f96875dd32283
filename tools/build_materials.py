"""Writes operators/materials.py, the table of X-ray attenuation, from the reference data of the package xraydb.

  pip install xraydb==4.5.8
  python tools/build_materials.py            # writes; --check only compares

xraydb (MIT) holds the elemental cross-sections of Elam, Ravel and Sieber (Radiation Physics and Chemistry 63, 2002).
Cortical bone has the composition of ICRU report 44. Only this tool needs the package.
"""

import importlib
import textwrap
from collections.abc import Iterable
from pathlib import Path

from absl import flags

from msm.infra import command_line
from msm.infra.atomic import atomic_write_text
from msm.infra.errors import UserError

TARGET = Path(__file__).resolve().parent.parent / "operators" / "materials.py"
ENERGIES = range(20, 120, 5)  # keV
COMPOSITION = {  # share of the mass
    "water": {"H": 0.111894, "O": 0.888106},
    "bone": {
        "H": 0.034, "C": 0.155, "N": 0.042, "O": 0.435, "Na": 0.001, "Mg": 0.002, "P": 0.103, "S": 0.003, "Ca": 0.225,
    },
    "aluminium": {"Al": 1.0},
    "titanium": {"Ti": 1.0},
    "iron": {"Fe": 1.0},
    "copper": {"Cu": 1.0},
    "gold": {"Au": 1.0},
}  # fmt: skip
DENSITY = {  # g/cm^3
    "water": 1.0, "bone": 1.92, "aluminium": 2.699, "titanium": 4.54, "iron": 7.874, "copper": 8.96, "gold": 19.32,
}  # fmt: skip


def table() -> str:
    """The text of operators/materials.py. Raises UserError where xraydb is not installed."""
    try:
        xraydb = importlib.import_module("xraydb")  # not a requirement of the program
    except ModuleNotFoundError as error:
        raise UserError("xraydb is not installed: pip install xraydb==4.5.8") from error
    lines = [
        '"""Attenuation of X-rays by materials, written by tools/build_materials.py from xraydb: do not edit."""',
        "",
        "# fmt: off",
        "ENERGIES = (  # keV",
        *_wrapped(map(float, ENERGIES)),
        ")",
        f"DENSITY = {{  # g/cm^3\n    {str(DENSITY)[1:-1]},\n}}".replace("'", '"'),
        "MASS_ATTENUATION = {  # cm^2/g at each energy: photoelectric, coherent and incoherent together",
    ]
    for material, parts in COMPOSITION.items():
        values = (
            float(f"{sum(share * float(xraydb.mu_elam(e, 1e3 * energy)) for e, share in parts.items()):.4g}")
            for energy in ENERGIES
        )
        lines += [f'    "{material}": (', *("    " + line for line in _wrapped(values)), "    ),"]
    return "\n".join([*lines, "}", ""])


def _wrapped(values: Iterable[float]) -> list[str]:
    return textwrap.wrap(", ".join(map(str, values)) + ",", 100, initial_indent="    ", subsequent_indent="    ")


def main(_: list[str]) -> None:
    text = table()
    if not flags.FLAGS.check:
        atomic_write_text(TARGET, text)
    elif TARGET.read_text() != text:
        raise UserError(f"{TARGET} differs from what xraydb says: run tools/build_materials.py")
    print(f"{TARGET}: {len(COMPOSITION)} materials at {len(ENERGIES)} energies")


if __name__ == "__main__":
    flags.DEFINE_bool("check", False, "Write nothing; only compare the file with what would be written.")
    command_line.start(main)
