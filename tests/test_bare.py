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
from dials_hybrid.parallel import allot
from dials_hybrid.refine import Checkpoint, Refinement, RefineSettings, build_model

PATIENCE = 120  # s; the runs take seconds on a quiet machine
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SMALL_BATCHES = dataclasses.replace(SETTINGS, memory=2e6)


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """Path of a problem that was not refined yet."""
    path = tmp_path_factory.mktemp("problem") / "problem.h5"
    made = Checkpoint(make_truth()[0], SMALL_BATCHES, RefineSettings(3), context={"from": "DIALS"})
    made.save(path)
    return path


def run(folder, *arguments, seconds=PATIENCE, **environment):
    """Run the command; return (exit status, stdout, stderr)."""
    process = bare.start(["-m", "dials_hybrid", *arguments], folder, **environment)
    out, errors = bare.finish(process, seconds)
    return process.returncode, out, errors


@pytest.fixture(scope="module")
def refined(problem, tmp_path_factory):
    """A run in one process: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("refined")
    status, out, errors = run(folder, problem)
    assert status == 0, errors
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


def test_a_finished_problem_is_not_refined_again(refined, tmp_path):
    path = refined[0] / "hybrid_refined.h5"
    status, out, _ = run(tmp_path, path, "--output", "copy.h5")
    assert status == 0 and "complete already" in out
    first, second = (Checkpoint.load(p) for p in (path, tmp_path / "copy.h5"))
    assert torch.equal(first.result.calculated, second.result.calculated)


def test_more_iterations_go_on(refined, tmp_path):
    path = refined[0] / "hybrid_refined.h5"
    status, out, errors = run(tmp_path, path, "--iterations", 4, "--threads", 1, "--memory", 1)
    assert status == 0, errors
    stored = Checkpoint.load(tmp_path / "hybrid_refined.h5")
    assert stored.result.summary["iterations"] == 4
    assert stored.model_settings.memory == 1e9 and stored.settings.iterations == 4


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


def wait_for(process, word):
    """Read lines of a started command until one holds the word; return them."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError(f"no {word} in {''.join(lines)}, {process.stderr.read()}")


def test_two_processes_give_bit_for_bit_what_one_gives(problem, refined, tmp_path):
    process = bare.start([*TORCHRUN, "-m", "dials_hybrid", problem], tmp_path)
    out, errors = bare.finish(process, PATIENCE)
    assert process.returncode == 0, errors
    assert "2 process(es)" in out and out.count("Written") == 1
    one, two = (Checkpoint.load(f / "hybrid_refined.h5") for f in (refined[0], tmp_path))
    assert one.result.state == two.result.state
    assert torch.equal(one.result.calculated, two.result.calculated)
    assert torch.equal(one.result.site_su, two.result.site_su)


def test_a_process_that_fails_ends_the_others(problem, tmp_path):
    """Process 1 breaks down in its first batch; process 0 says so instead of waiting."""
    ports = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    scripts = {"0": "", "1": "HybridModel.batch_tangents = None; "}
    processes = [
        bare.start(
            [
                "-c",
                f"import sys; from dials_hybrid.model import HybridModel; {change}"
                f"from dials_hybrid.__main__ import main; sys.exit(main([{str(problem)!r}]))",
            ],
            tmp_path,
            RANK=rank,
            **ports,
        )
        for rank, change in scripts.items()
    ]
    errors = [bare.finish(process, PATIENCE)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "process 0: another process of this run failed" in errors[0]
    assert "Traceback" not in errors[0] and "TypeError" in errors[1]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["one process", "torchrun"])
def test_an_interrupt_writes_what_there_is(problem, tmp_path, launcher):
    """The whole group is interrupted, as by Ctrl-C in a terminal."""
    arguments = [*launcher, "-m", "dials_hybrid", problem, "--iterations", "500"]
    process = bare.start(arguments, tmp_path)
    try:
        wait_for(process, " joint ")
        os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=PATIENCE)
    finally:
        bare.end(process)
    stored = Checkpoint.load(tmp_path / "hybrid_refined.h5")
    assert "interrupted" in stored.result.stop_reason, (out, errors)
    assert stored.result.summary["iterations"] >= 1


def test_the_gradient_of_two_processes_is_that_of_one(problem, tmp_path):
    """Each holds half of the graph; both get the whole gradient."""
    script = f"""
import torch
from dials_hybrid.parallel import joined, rank
from dials_hybrid.refine import Checkpoint, build_model

stored = Checkpoint.load({str(problem)!r})
with joined("cpu") as share:
    model = build_model(stored.problem, stored.model_settings, 0, share=share)
    intensities = model.intensities(model.profiles())
    (intensities.square().sum() + model.prior_residuals().sum()).backward()
gradient = [p.grad for p in model.parameters()]
torch.save((gradient, len(model.batches)), f"gradient{{rank()}}.pt")
"""
    (tmp_path / "gradient.py").write_text(script)
    process = bare.start([*TORCHRUN, "gradient.py"], tmp_path)
    _, errors = bare.finish(process, PATIENCE)
    assert process.returncode == 0, errors
    stored = Checkpoint.load(problem)
    model = build_model(stored.problem, stored.model_settings, 0)
    intensities = model.intensities(model.profiles())
    (intensities.square().sum() + model.prior_residuals().sum()).backward()
    batches = 0
    for rank in range(2):
        gradient, held = torch.load(tmp_path / f"gradient{rank}.pt")
        batches += held
        for found, p in zip(gradient, model.parameters(), strict=True):
            assert torch.allclose(found, p.grad, rtol=1e-10, atol=1e-12 * float(p.grad.abs().max()))
    assert batches == len(model.batches) >= 4


def test_shares_are_balanced_and_complete():
    generator = torch.Generator().manual_seed(1)
    work = (1 + 20 * torch.rand(37, generator=generator)).tolist()
    for size in (1, 2, 5):
        shares = allot(work, size)
        assert sorted(i for share in shares for i in share) == list(range(37))
        load = [sum(work[i] for i in share) for share in shares]
        assert max(load) <= 4 / 3 * sum(work) / size
    assert allot([1.0, 5.0], 4) == [[1], [0], [], []]
