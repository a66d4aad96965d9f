"""Fixtures that several test files share. DIALS is imported only by those that need it."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

# tests that run beside each other have one thread each
together = "PYTEST_XDIST_WORKER" in os.environ
torch.set_num_threads(1 if together else min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets: $DIALS_HYBRID_DATA, or shared/data beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DIALS_HYBRID_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} of real data; set DIALS_HYBRID_DATA to test with it")
    return folder


@pytest.fixture(scope="session")
def quartz_dials(data_folder) -> Path:
    """The folder of the real quartz sweep that DIALS integrated."""
    folder = data_folder / "quartz_dials"
    if not (folder / "integrated.refl").is_file():
        pytest.skip(f"no quartz sweep in {folder}")
    return folder


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    """Paths of a made-up sweep: .expt, .refl and .cif."""
    synthetic = pytest.importorskip("synthetic", reason="DIALS is not installed")
    folder = tmp_path_factory.mktemp("sweep")
    expt, refl = synthetic.make_sweep(folder)
    cif = folder / "quartz.cif"
    cif.write_text(synthetic.QUARTZ_CIF)
    return SimpleNamespace(expt=expt, refl=refl, cif=cif)


@pytest.fixture
def loaded(sweep):
    """The made-up sweep as `io_dials.Loaded`, read anew because tables can be changed."""
    from dials_hybrid import io_dials

    return io_dials.load([sweep.expt, sweep.refl])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def warnings_logged(caplog):
    """Call it for the messages of our own loggers at level warning."""
    caplog.set_level(logging.WARNING, logger="dials.hybrid")
    # DIALS turns propagation off once a command has configured logging
    logging.getLogger("dials").propagate = True

    def messages() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name.startswith("dials.hybrid")]

    return messages
