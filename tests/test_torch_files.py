"""PyTorch's .pth files."""

import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest
from test_readers import ARRAYS, BFLOAT16, Evil, refused, same

from deeplab_jax.importers.readers import open_weights


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    (tmp_path / "w.pth").write_bytes(b"\x80\x02N.")
    refused(tmp_path / "w.pth", r"pip install 'deeplab_jax\[torch\]'")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def tensors(torch, arrays=ARRAYS):
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("ending", ["pth", "pth.tar", "pt", "bin", "ckpt"])
def test_torch_gives_back_its_arrays(tmp_path, torch, zipped, ending):
    state = tensors(torch)
    state["brain"] = torch.arange(6).reshape(2, 3).to(torch.bfloat16)
    state["turned"] = torch.nn.Parameter(state["a/kernel"].permute(2, 0, 1))
    path = tmp_path / f"w.{ending}"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    same(
        path,
        ARRAYS
        | {
            "brain": np.arange(6).reshape(2, 3).astype(BFLOAT16),
            "turned": ARRAYS["a/kernel"].transpose(2, 0, 1),
        },
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", ["state_dict", "model_state", "model_state_dict", "model"])
def test_training_checkpoints_are_looked_into(tmp_path, torch, zipped, key):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    torch.nn.DataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "arch": "deeplab",
        "best_pred": np.float64(0.7),
        "best_score": np.float32(0.7),
        key: torch.nn.DataParallel(model).state_dict() | {"module.version": 2},
        "optimizer": optimizer.state_dict(),
    }
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    same(path, {name: value.numpy() for name, value in model.state_dict().items()})


def test_module_stays_where_not_every_name_has_it(tmp_path, torch):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pth")
    assert open_weights(tmp_path / "w.pth").keys() == {"module.a", "b"}


def test_scalars_of_an_older_numpy(tmp_path, torch):
    content = {"state_dict": tensors(torch), "best_score": np.float64(0.5)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "w.pth").read_bytes()
    assert b"numpy._core.multiarray" in raw
    (tmp_path / "w.pth").write_bytes(raw.replace(b"numpy._core", b"numpy.core"))
    same(tmp_path / "w.pth", ARRAYS)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain", "newer"])
def test_torch_files_never_run_code(tmp_path, torch, how):
    path, content = tmp_path / "w.pth", {"x": torch.ones(1), "y": Evil(tmp_path / "canary")}
    if how in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    else:
        path.write_bytes(pickle.dumps(content["y"], protocol=2 if how == "plain" else 4))
    refused(path, r"nothing was run. Save model.state_dict\(\) alone")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_model_is_refused(tmp_path, torch, zipped):
    torch.save(torch.nn.ReLU(), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "w.pt", "it holds torch.nn.modules.activation.ReLU beside tensors")


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": {"lr": 0.1}}])
def test_torch_files_without_tensors_are_refused(tmp_path, torch, content):
    torch.save(content, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "no mapping of tensors")


def test_a_spread_tensor_takes_no_memory_before_it_is_read(tmp_path, torch, little_memory):
    small = torch.arange(3.0)[:, None].expand(3, 5)
    torch.save({"x": torch.zeros(1).expand(10**10), "small": small}, tmp_path / "w.pth")
    weights = open_weights(tmp_path / "w.pth")
    assert weights["x"].shape == (10**10,)
    np.testing.assert_array_equal(weights["small"].read(), np.arange(3.0)[:, None] * np.ones(5))
    torch.save({"x": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "claims the shape")


def test_other_tensors_are_refused(tmp_path, torch):
    torch.save({"x": torch.ones(2, 2).to_sparse()}, tmp_path / "sparse.pth")
    refused(tmp_path / "sparse.pth", "dense")
    torch.save({"x": torch.ones(2, dtype=torch.complex64)}, tmp_path / "complex.pth")
    refused(tmp_path / "complex.pth", "complex64")


def test_damaged_torch_files_are_refused(tmp_path, torch):
    torch.save({"x": torch.full((999,), 7.0)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    sevens = np.full(9, 7, np.float32).tobytes()
    (tmp_path / "w.pth").write_bytes(content.replace(sevens, bytes(36), 1))
    refused(tmp_path / "w.pth", "data/0 in it is damaged", at_read=True)
    (tmp_path / "w.pth").write_bytes(content[:2000])
    refused(tmp_path / "w.pth", "cannot be read")
    (tmp_path / "w.pth").write_bytes(b"<!DOCTYPE html>")
    refused(tmp_path / "w.pth", "neither as a zip nor as a pickle")
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(1000))
    refused(tmp_path / "w.pth", "compressed")

    torch.save({"x": torch.ones(999)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pth").read_bytes()
    for length in (1, 20, 100, 300, len(content) - 1):
        (tmp_path / "w.pth").write_bytes(content[:length])
        refused(tmp_path / "w.pth", r"cannot be read|is the file damaged")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_tensors_larger_than_the_file_are_refused(tmp_path, torch, zipped, number):
    path = tmp_path / "w.pth"
    torch.save({"x": torch.ones(999)}, path, _use_new_zipfile_serialization=zipped)
    true = b"M" + struct.pack("<H", 999)  # pickled: the storage's elements, then the shape

    def change(content):
        first, second, rest = content.split(true)
        false = b"J" + struct.pack("<i", 2**28)
        return first + (false + second + true, true + second + false)[number] + rest

    if zipped:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, change(content) if name.endswith("data.pkl") else content)
    else:
        path.write_bytes(change(path.read_bytes()))
    if (zipped, number) == (True, 0):  # only as many bytes as there are become a storage
        assert open_weights(path)["x"].shape == (999,)
    else:
        refused(path, "cannot be read")
