"""Made-up PETS2 files: alpha-quartz that turns about an axis across the beam."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dials_hybrid import beams, crystal

CELL = (4.916, 4.916, 5.4054, 90.0, 90.0, 120.0)
KEYS = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")


def turn(x=0.0, y=0.0, z=0.0) -> torch.Tensor:
    """Return the rotation (3, 3) of a rotation vector in degree."""
    vector = torch.tensor([x, y, z], dtype=torch.float64)
    return beams.rotation_matrices(vector * math.pi / 180)


def b_matrix(cell=CELL) -> torch.Tensor:
    """Return the reciprocal axes (3, 3) of a cell as columns, in A^-1."""
    metric = crystal.metric(torch.tensor(cell, dtype=torch.float64))
    return torch.linalg.inv(torch.linalg.cholesky(metric))


@dataclass(frozen=True)
class PetsFile:
    """What a file says; `rows` are (h, k, l, I, sigma, zone), angles in degree."""

    rows: tuple = ()
    alpha: tuple = (-4.0, -2.5, -1.0, 0.5, 2.0)
    beta: float = 0.1
    omega: float = 22.0
    position: float = 22.0
    half_width: float = 1.0
    mosaicity: float = 0.0
    wavelength: float = 0.0251
    cell: tuple = CELL
    u: torch.Tensor = field(default_factory=lambda: turn(30, -50, 70))
    ub_scale: float = 1.0
    geometry: str = "continuous rotation"
    merged: int | None = None

    def zone_setting(self, zone: int) -> torch.Tensor:
        """Return the matrix (3, 3) that takes hkl to the laboratory in a frame's middle."""
        tilts = turn(z=self.omega) @ turn(x=self.alpha[zone]) @ turn(y=self.beta)
        return tilts @ self.u @ b_matrix(self.cell)

    def text(self) -> str:
        """Return the CIF."""
        ub = self.ub_scale * self.u @ b_matrix(self.cell)
        lines = ["data_pets"]
        lines += [f"_cell_{k} {v:.5f}" for k, v in zip(KEYS, self.cell, strict=True)]
        lines.append(f"_diffrn_radiation_wavelength {self.wavelength}")
        lines += [
            f"_diffrn_orient_matrix_UB_{i + 1}{j + 1} {float(ub[i, j]):.9f}"
            for i in range(3)
            for j in range(3)
        ]
        lines += [
            "_diffrn_measurement_details\n;",
            f"data collection geometry: {self.geometry}",
            "dstarmax:  1.600",
            f"mosaicity:  {self.mosaicity:.3f}",
            f"rotation axis position:   {self.position:.3f}",
            *([] if self.merged is None else [f"number of merged frames:  {self.merged}"]),
            ";",
            "# D:\\\u00fcbung\\data.cif_pets",
            "loop_",
        ]
        columns = ("id", "u", "v", "w", "precession_angle", "alpha", "beta", "omega", "scale")
        lines += [f"_diffrn_zone_axis_{name}" for name in columns]
        for i, alpha in enumerate(self.alpha):
            u, v, w = self.zone_setting(i)[2].tolist()  # along z: no component across it
            lines.append(
                f"{i + 1} {u:.5f} {v:.5f} {w:.5f} {self.half_width} {alpha} {self.beta} "
                f"{self.omega} 0.9"
            )
        columns = ("index_h", "index_k", "index_l", "intensity_meas", "intensity_sigma")
        lines += ["loop_", *(f"_refln_{name}" for name in (*columns, "zone_axis_id"))]
        lines += [" ".join(str(x) for x in row) for row in self.rows]
        return "\n".join(lines) + "\n"

    def write(self, path) -> Path:
        """Write the file and return its path."""
        Path(path).write_text(self.text(), encoding="latin-1")
        return Path(path)

    def with_rows_in_frames(self, structure, g_limit: float) -> PetsFile:
        """Return the file with every reflection of each frame that crosses the Ewald sphere."""
        hkl = beams.lattice_points(structure, g_limit)
        axis = turn(z=self.position)[:, 0]
        k = torch.tensor([1 / self.wavelength], dtype=torch.float64)
        s0 = torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float64) * k
        rows = []
        for zone in range(len(self.alpha)):
            ends = []
            for offset in (-self.half_width, self.half_width):
                rock = turn(*(axis * offset).tolist())
                vectors = hkl.double() @ (rock @ self.zone_setting(zone)).T
                ends.append(beams.excitation_errors(vectors[None], s0, k)[0])
            crossing = hkl[ends[0] * ends[1] < 0].tolist()
            rows += [(*h, 100.0, 5.0, zone + 1) for h in crossing]
        return dataclasses.replace(self, rows=tuple(rows))

    def with_intensities(self, values, sigmas) -> PetsFile:
        """Return the file with other intensities and sigmas, one for each row."""
        changed = zip(self.rows, values, sigmas, strict=True)
        rows = tuple((*r[:3], f"{v:.4f}", f"{s:.4f}", r[5]) for r, v, s in changed)
        return dataclasses.replace(self, rows=rows)
