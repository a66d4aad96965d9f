"""`python -m dials_hybrid` as a user runs it on a machine without DIALS, alone and by torchrun."""

import dataclasses
import os
import signal
import socket

import bare
import h5py
import pytest
import torch
from test_refine import SETTINGS, make_truth

from dials_hybrid import __main__ as command
from dials_hybrid import parallel
from dials_hybrid.parallel import allot, available
from dials_hybrid.refine import Checkpoint, Refinement, RefineSettings, build_model

PATIENCE = 300  # s; the runs take seconds on a quiet machine
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SMALL_BATCHES = dataclasses.replace(SETTINGS, memory=2e6)


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """Path of a problem that was not refined yet."""
    path = tmp_path_factory.mktemp("problem") / "problem.h5"
    made = Checkpoint(make_truth()[0], SMALL_BATCHES, RefineSettings(3), context={"from": "DIALS"})
    made.save(path)
    return path


@pytest.fixture(scope="module")
def refined(problem, tmp_path_factory):
    """A run in one process: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("refined")
    process = bare.start(["-m", "dials_hybrid", problem], folder)
    out, errors = bare.finish(process, PATIENCE)
    assert process.returncode == 0, errors
    return folder, out


def test_a_problem_is_refined_without_dials(problem, refined):
    folder, out = refined
    stored = Checkpoint.load(folder / "hybrid_refined.h5")
    assert stored.context == {"from": "DIALS"}
    assert stored.result.summary["iterations"] == 3 and stored.finished
    assert stored.result.summary["final"]["r1_obs"] < stored.result.summary["start"]["r1_obs"]
    assert f"{stored.result.summary['final']['r1_obs']:.4f}" in out
    assert "dials.hybrid_refine hybrid_refined.h5" in out
    assert len([row for row in out.splitlines() if " joint " in row]) == 3


def test_a_finished_problem_is_not_refined_again(refined, tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(Refinement, "run")
    path, copy = refined[0] / "hybrid_refined.h5", tmp_path / "copy.h5"
    assert command.main([str(path), "--output", str(copy)]) == 0
    assert "complete already" in capsys.readouterr().out
    first, second = Checkpoint.load(path), Checkpoint.load(copy)
    assert torch.equal(first.result.calculated, second.result.calculated)


def test_more_iterations_go_on(refined, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = refined[0] / "hybrid_refined.h5"
    threads = torch.get_num_threads()
    options = ["--iterations", "4", "--threads", str(threads), "--memory", "1"]
    assert command.main([str(path), *options]) == 0
    stored = Checkpoint.load("hybrid_refined.h5")
    assert stored.result.summary["iterations"] == 4
    assert stored.model_settings.memory == 1e9 and stored.settings.iterations == 4


def test_the_stages_of_a_large_problem_are_printed(tmp_path, monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Refinement, "run", interrupted)
    path = tmp_path / "large.h5"
    Checkpoint(make_truth()[0], SMALL_BATCHES, RefineSettings(1, large=1e-6)).save(path)
    assert command.main([str(path), "--output", str(tmp_path / "out.h5")]) == 1
    assert "Stage coarse: intensities from all beams" in capsys.readouterr().out


def other_hdf5(path):
    with h5py.File(path, "w") as handle:
        handle["x"] = 1


def problem_alone(path):
    make_truth()[0].save(path)


def from_the_future(path):
    made = Checkpoint(make_truth()[0], SETTINGS)
    made.save(path)
    with h5py.File(path, "a") as handle:
        del handle["refine_settings"]
        handle["refine_settings"] = '{"leap": 1}'
        handle["refine_settings"].attrs["json"] = True


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "bad.h5: no such file"),
        (lambda path: path.write_bytes(b"text"), "bad.h5: cannot be read as HDF5"),
        (other_hdf5, "bad.h5: an HDF5 file, but not one that dials_hybrid wrote"),
        (problem_alone, "bad.h5: holds no model_settings"),
        (from_the_future, "not those of this version"),
    ],
)
def test_a_bad_file_is_explained(tmp_path, make, words, capsys):
    make(tmp_path / "bad.h5")
    assert command.main([str(tmp_path / "bad.h5")]) == 1
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: PROBLEM"),
        (["--iterations", "0"], "--iterations: invalid positive int value: '0'"),
        (["--memory", "much"], "--memory"),
        (["--device", "tpu"], "--device"),
        (["--output", "missing/x.h5"], "there is no folder missing"),
        (["--output", "."], "this is a folder"),
        (["--device", "cuda"], "torch finds no CUDA device"),
    ],
)
def test_bad_options_are_explained(problem, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = [*arguments, str(problem)] if arguments else []
    assert command.main(given) == 1
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_names_the_knob(problem, tmp_path, monkeypatch, capsys):
    def exhausted(self):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Refinement, "run", exhausted)
    assert command.main([str(problem), "--output", str(tmp_path / "out.h5")]) == 1
    assert "lower --memory" in capsys.readouterr().err


# --- several processes ----------------------------------------------------------------------

TOGETHER = """
import torch
from dials_hybrid import __main__ as command
from dials_hybrid.parallel import joined
from dials_hybrid.refine import Checkpoint, build_model

stored = Checkpoint.load({problem!r})
with joined("cpu") as share:
    model = build_model(stored.problem, stored.model_settings, 0, share=share)
    intensities = model.intensities(model.profiles())
    (intensities.square().sum() + model.prior_residuals().sum()).backward()
    gradient = [p.grad for p in model.parameters()]
    torch.save((gradient, len(model.batches)), f"gradient{{share.rank}}.pt")
    if share.rank:
        share.serve(model)
    else:
        command.refine(stored, "refined.h5", share)
"""

BREAKING = """
import os, sys
from dials_hybrid.__main__ import main
from dials_hybrid.model import HybridModel

if os.environ["RANK"] == "1":
    HybridModel.batch_tangents = None
sys.exit(main([{problem!r}]))
"""


@pytest.fixture(scope="module")
def gloo():
    """Several processes need gloo, and a store that Debian's torch, without libuv, lacks."""
    if not available("gloo"):
        pytest.skip("this build of torch lacks gloo")
    try:
        torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        pytest.skip(f"this build of torch cannot join processes: {error}")


def test_a_torch_without_gloo_says_so(problem, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "launched", lambda: True)
    monkeypatch.setattr(parallel, "available", lambda backend: False)
    assert command.main([str(problem)]) == 1
    assert "this build of torch lacks gloo" in capsys.readouterr().err


def two_processes(script, folder):
    """Run a script in two processes that know of each other; return [(status, out, errors)]."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [bare.start(["-c", script], folder, RANK=rank, **group) for rank in "01"]
    try:
        printed = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            bare.end(process)
    return [(p.returncode, *texts) for p, texts in zip(processes, printed, strict=True)]


@pytest.fixture(scope="module")
def together(gloo, problem, tmp_path_factory):
    """The folder of a run in two processes."""
    folder = tmp_path_factory.mktemp("together")
    found = two_processes(TOGETHER.format(problem=str(problem)), folder)
    assert [status for status, *_ in found] == [0, 0], found
    assert "2 process(es)" in found[0][1] and found[1][1] == ""
    return folder


def test_two_processes_give_bit_for_bit_what_one_gives(refined, together):
    one = Checkpoint.load(refined[0] / "hybrid_refined.h5").result
    two = Checkpoint.load(together / "refined.h5").result
    assert one.state == two.state
    assert torch.equal(one.calculated, two.calculated)
    assert torch.equal(one.site_su, two.site_su)
    # gradients by the structure factors are sums over batches, which are grouped otherwise
    gradient = one.fourier.gradient
    assert (two.fourier.gradient - gradient).abs().max() <= 1e-9 * gradient.abs().max() > 0


def test_the_gradient_of_two_processes_is_that_of_one(problem, together):
    """Each holds half of the batches; both get the whole gradient."""
    stored = Checkpoint.load(problem)
    model = build_model(stored.problem, stored.model_settings, 0)
    intensities = model.intensities(model.profiles())
    (intensities.square().sum() + model.prior_residuals().sum()).backward()
    held = 0
    for rank in range(2):
        gradient, batches = torch.load(together / f"gradient{rank}.pt")
        held += batches
        for found, p in zip(gradient, model.parameters(), strict=True):
            # no occupancy is free: that parameter is empty
            assert torch.allclose(found, p.grad, rtol=0, atol=1e-10 * float(p.grad.norm()))
    assert held == len(model.batches) >= 4


def test_a_process_that_fails_ends_the_others(problem, tmp_path, gloo):
    """Process 1 breaks down in its first batch; process 0 says so instead of waiting."""
    first, second = two_processes(BREAKING.format(problem=str(problem)), tmp_path)
    assert first[0] == second[0] == 1
    assert "process 0: another process of this run failed" in first[2]
    assert "Traceback" not in first[2] and "TypeError" in second[2]


def test_an_interrupt_under_torchrun_writes_what_there_is(problem, tmp_path, gloo):
    """The whole group is interrupted, as by Ctrl-C in a terminal."""
    arguments = [*TORCHRUN, "-m", "dials_hybrid", problem, "--iterations", "500"]
    process = bare.start(arguments, tmp_path)
    seen = ""
    try:
        while " joint " not in seen and (line := process.stdout.readline()):
            seen += line
        os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=PATIENCE)
    finally:
        bare.end(process)
    assert " joint " in seen, errors
    stored = Checkpoint.load(tmp_path / "hybrid_refined.h5")
    assert "interrupted" in stored.result.stop_reason, (out, errors)
    assert stored.result.summary["iterations"] >= 1


def test_shares_are_balanced_and_complete():
    generator = torch.Generator().manual_seed(1)
    work = (1 + 20 * torch.rand(37, generator=generator)).tolist()
    for size in (1, 2, 5):
        shares = allot(work, size)
        assert sorted(i for share in shares for i in share) == list(range(37))
        load = [sum(work[i] for i in share) for share in shares]
        assert max(load) <= 4 / 3 * sum(work) / size
    assert allot([1.0, 5.0], 4) == [[1], [0], [], []]
