"""What strangers' files try, and what each must show (F1 to F12 of the 64 faults).

Each is tried at the door that a user opens: the command line, in a process of its own where memory
or the terminal is the matter. Readers of weights have finer tests beside them (test_readers.py,
test_torch_files.py, test_tf_bundle.py), predictions' names in test_predict_files.py.
"""

import csv
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import miniatures
import numpy as np
import pytest
import safetensors.numpy
from command import ENVIRONMENT, QUICK, command, run
from conftest import CONFIGS, write_folder
from PIL import Image
from test_golden_models import seeded
from test_pipeline import stream, take
from test_readers import Evil, npy_header, write_npz
from test_train import small

import deeplab_jax
from deeplab_jax import command_line, main, output
from deeplab_jax import config as configuration
from deeplab_jax.data import datasets, download, image_files
from deeplab_jax.data.datasets.dataset import Archive
from deeplab_jax.errors import ConfigError, DataError, UnreadableError, UserError, WeightsError

ESCAPE = "\x1b]0;owned\x07\x1b[31m"
MARKUP = "<img src=x onerror=alert(1)>"
# A run in a process, and by how much its memory grew above that of the program itself.
GROWTH = """
import resource, sys
from deeplab_jax import main

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = peak()
code = main.main()
print("grew by", peak() - before, "MB")
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def limits_as_before(monkeypatch):
    """Every run sets the limit of an image's pixels for its whole process."""
    monkeypatch.setenv("DEEPLAB_JAX_MAX_PIXELS", str(image_files.MAX_PIXELS))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data, workdir, what was said) of a training of one step, whose classes have nasty names."""
    place = tmp_path_factory.mktemp("trained")
    root = write_folder(place / "data")
    names = [MARKUP, "=1+cmd|' /C calc'!A0", "../../outside"]
    (root / "classes.json").write_text(json.dumps({"classes": [{"name": n} for n in names]}))
    changes = QUICK | {"train.steps": 1, "eval.panels": 2}
    done = run(command(root, place / "workdir", **changes))
    assert done.returncode == 0, done.stderr
    return root, place / "workdir", done.stdout + done.stderr


def grown(*arguments):
    """(exit code, stderr, MB by which memory grew) of the command line with these arguments."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr, int(done.stdout.split()[-2])


def refused(error, code, *arguments, **options):
    """The sentence of an in-process run that must end with this error."""
    with pytest.raises(error) as caught:
        main.run(*arguments, **options)
    assert caught.value.exit_code == code
    return str(caught.value)


def everything(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# F1 to F4: weight files


def torch_zip(path, content):
    """What torch.save writes, as far as the pickle: no torch is needed to make it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


@pytest.mark.fault("F1")
@pytest.mark.parametrize("name", ["evil.pth", "evil.pth.tar", "evil.pt", "evil.bin", "evil.ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_weights_is_never_run(tmp_path, name, zipped):
    content = pickle.dumps({"state_dict": Evil(tmp_path / "canary")}, protocol=2)
    (torch_zip if zipped else Path.write_bytes)(tmp_path / name, content)
    said = refused(WeightsError, 4, None, "import", tmp_path / "w", str(tmp_path / name))
    assert name in said
    assert not (tmp_path / "canary").exists()
    pickle.loads(content)["state_dict"].close()  # it would have
    assert (tmp_path / "canary").exists()


@pytest.mark.fault("F1")
def test_nor_is_it_where_torch_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    torch_zip(tmp_path / "evil.pth", pickle.dumps(Evil(tmp_path / "canary"), protocol=2))
    said = refused(WeightsError, 4, None, "import", tmp_path / "w", str(tmp_path / "evil.pth"))
    assert "pip install 'deeplab_jax[torch]'" in said
    assert not (tmp_path / "canary").exists()


@pytest.mark.fault("F1")
def test_a_pickle_in_weights_ends_the_program_with_4_and_a_sentence(tmp_path):
    torch_zip(tmp_path / "evil.pth", pickle.dumps(Evil(tmp_path / "canary"), protocol=2))
    code, said, _ = grown("--mode=import", f"--input={tmp_path}/evil.pth", f"--workdir={tmp_path}")
    assert code == 4, said
    assert "evil.pth" in said
    assert not (tmp_path / "canary").exists()


@pytest.mark.fault("F1")
def test_a_header_never_has_a_module_imported(tmp_path, monkeypatch):
    """A model's keywords may name an encoder as MODULE:NAME: those of a file must not."""
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    model = {"name": "v3", "backbone": "evil_module:Net", "num_classes": 3}
    header = {"model": model, "data": {"normalization": "zero_mean"}, "source": "a friend"}
    arrays = {"params/backbone/conv/kernel": np.zeros((1, 1, 3, 3), np.float32)}
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, {"deeplab_jax": json.dumps(header)})
    said = refused(WeightsError, 4, None, "import", tmp_path / "w", str(path))
    assert "backbone outside this package" in said
    assert not (tmp_path / "canary").exists()


@pytest.mark.fault("F1")
def test_a_record_never_has_a_module_imported(trained, tmp_path, monkeypatch):
    workdir = shutil.copytree(trained[1], tmp_path / "workdir")
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    record = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(record.replace("tiny_backbone:Tiny", "evil_module:Net"))
    with pytest.raises(WeightsError, match="`import evil_module` before"):
        deeplab_jax.load(workdir)
    assert not (tmp_path / "canary").exists()


@pytest.mark.fault("F2")
@pytest.mark.parametrize("name", ["evil.npz", "evil.npy"])
def test_object_arrays_are_refused(tmp_path, name):
    array = np.array([Evil(tmp_path / "canary")], object)
    if name == "evil.npz":
        np.savez(tmp_path / name, x=array)
    else:
        np.save(tmp_path / name, array)
    said = refused(WeightsError, 4, None, "import", tmp_path / "w", str(tmp_path / name))
    assert name in said
    assert not (tmp_path / "canary").exists()


def tensor(shape, begin, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.fault("F3")
@pytest.mark.parametrize(
    ("header", "length"),
    [
        pytest.param({"x": tensor([4], 0, 1600)}, None, id="past the end"),
        pytest.param({"x": tensor([4], 0, 16), "y": tensor([4], 8, 24)}, None, id="overlap"),
        pytest.param({"x": tensor([2**61], 0, 2**63)}, None, id="2**63 bytes"),
        pytest.param({"x": tensor([4], 16, 0)}, None, id="backwards"),
        pytest.param({"x": tensor([4], 0, 16)}, 2**63, id="header of 2**63"),
        pytest.param({"x": tensor([4], 0, 16)}, 90_000_000, id="header longer than the file"),
    ],
)
def test_lying_safetensors_are_refused(tmp_path, header, length, little_memory):
    text = json.dumps(header).encode()
    start = struct.pack("<Q", length or len(text))
    (tmp_path / "w.safetensors").write_bytes(start + text + bytes(24))
    said = refused(WeightsError, 4, None, "import", tmp_path / "w", str(tmp_path / "w.safetensors"))
    assert "w.safetensors" in said


@pytest.mark.fault("F3", "F4")
@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_shapes_of_10_to_the_12_take_no_memory(tmp_path, kind):
    path = tmp_path / f"w.{kind}"
    if kind == "npz":
        write_npz(path, npy_header((10**6, 10**6)) + bytes(16))
    else:
        text = json.dumps({"x": tensor([10**6, 10**6], 0, 4 * 10**12)}).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    code, said, growth = grown("--mode=import", f"--input={path}", f"--workdir={tmp_path}")
    assert code == 4, said
    assert path.name in said
    assert growth < 100


# F5, F6: archives


def member(name, kind=tarfile.REGTYPE, link="", size=0, pax_headers=()):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.pax_headers = kind, link, size, dict(pax_headers)
    return info


def write_tar(path, *members, mode="w"):
    """A tar file of these, a good one before them."""
    with tarfile.open(path, mode) as archive:
        for info in (member("good.txt", size=4), *members):
            archive.addfile(info, io.BytesIO(bytes(info.size)) if info.isreg() else None)
    return path


def refused_archive(path, *words, **keys):
    """Asserts that the command line refuses an archive and leaves nothing, inside or outside."""
    folder = path.parent
    config, before = None, everything(folder)
    if keys:
        overrides = {f"data.{key}": value for key, value in keys.items()}
        config = configuration.load(f"{CONFIGS}/v3plus.py:mobilenet_v2,folder", overrides)
    said = refused(DataError, 3, config, "download", None, str(path), folder / "deep" / "out")
    assert path.name in said
    for word in words:
        assert word in said
    assert everything(folder) - before <= {"deep"}  # the empty folder above what was asked for


OUT = "leads out of the folder"
LINK = "a link or a device"


@pytest.mark.fault("F5")
@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([member("../evil.txt", size=4)], OUT),
        ([member("a/../../evil.txt", size=4)], OUT),
        ([member("/evil.txt", size=4)], OUT),
        ([member("C:\\evil.txt", size=4)], OUT),
        ([member("C:evil.txt", size=4)], OUT),
        ([member("a\\..\\..\\evil.txt", size=4)], OUT),
        ([member("\\\\host\\share\\evil.txt", size=4)], OUT),
        ([member("..", tarfile.DIRTYPE)], OUT),
        ([member("link", tarfile.SYMTYPE, "/etc/passwd")], LINK),
        ([member("link", tarfile.SYMTYPE, "../.."), member("link/evil.txt", size=4)], LINK),
        ([member("link", tarfile.LNKTYPE, "good.txt")], LINK),
        ([member("link", tarfile.LNKTYPE, "../../secret.txt")], LINK),
        ([member("device", tarfile.CHRTYPE)], LINK),
        ([member("device", tarfile.BLKTYPE)], LINK),
        ([member("pipe", tarfile.FIFOTYPE)], LINK),
        ([member("good.txt", size=4)], "there twice"),
        ([member("good.txt/evil.txt", size=4)], "a file and a folder"),
        ([member("evil.txt", pax_headers={"size": "-4"})], ""),
    ],
)
def test_evil_members_of_a_tar_are_refused(tmp_path, members, words):
    (tmp_path / "secret.txt").write_text("secret")
    for mode in ("w", "w:gz"):
        refused_archive(write_tar(tmp_path / f"evil.tar{mode[1:]}", *members, mode=mode), words)
    assert (tmp_path / "secret.txt").read_text() == "secret"


@pytest.mark.fault("F5")
def test_an_evil_tar_ends_the_program_with_3_and_a_sentence(tmp_path):
    path = write_tar(tmp_path / "evil.tar", member("../evil.txt", size=4))
    code, said, _ = grown("--mode=download", f"--input={path}", f"--output={tmp_path / 'out'}")
    assert code == 3, said
    assert "'../evil.txt' in it leads out of the folder" in said
    assert everything(tmp_path) == {"evil.tar"}


@pytest.mark.fault("F5")
@pytest.mark.parametrize("kind", ["long name", "pax", "zeros"])
def test_tar_bombs_take_no_memory_and_no_disk(tmp_path, kind, little_memory):
    with gzip.open(tmp_path / "evil.tar.gz", "wb", compresslevel=1) as file:
        size = 300 * 2**20
        types = {"long name": tarfile.GNUTYPE_LONGNAME, "pax": tarfile.XHDTYPE}
        info = member("big", types.get(kind, tarfile.REGTYPE), size=size)
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(300):
            file.write(bytes(2**20))
        file.write(bytes(1024))
    words = "over 100 times" if kind == "zeros" else "a header of more than"
    refused_archive(tmp_path / "evil.tar.gz", words)


@pytest.mark.fault("F5")
@pytest.mark.parametrize("damage", ["cut", "header", "text", "gzip"])
def test_damaged_archives_leave_nothing(tmp_path, damage):
    members = [member(f"{i}.txt", size=5000) for i in range(9)]
    path = write_tar(tmp_path / "a.tar", *members, mode="w:gz" if damage == "gzip" else "w")
    content = bytearray(path.read_bytes())
    if damage == "header":  # of a member in the middle, where tarfile itself takes it for the end
        at = content.index(b"5.txt")
        content[at : at + 300] = b"\xff" * 300
    cut = {"cut": 20_000, "gzip": len(content) - 12}.get(damage, len(content))
    path.write_bytes(b"<!DOCTYPE html>" * 99 if damage == "text" else content[:cut])
    refused_archive(path, "damaged")


def write_zip(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return path


def linked(name):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


@pytest.mark.fault("F6")
@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("../evil.txt", "evil")], OUT),
        ([("/evil.txt", "evil")], OUT),
        ([("a/../../evil.txt", "evil")], OUT),
        ([("C:\\evil.txt", "evil")], OUT),
        ([("a\\..\\..\\evil.txt", "evil")], OUT),
        ([(linked("link"), "/etc/passwd")], LINK),
        ([("good.txt", "evil")], "there twice"),
        ([("zeros.bin", bytes(10**7))], "over 100 times as large: a bomb"),
        ([(f"{i}.bin", bytes(10**5)) for i in range(99)], "over 100 times as large: a bomb"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_evil_entries_of_a_zip_are_refused(tmp_path, entries, words):
    path = write_zip(tmp_path / "evil.zip", [("good.txt", os.urandom(100)), *entries])
    refused_archive(path, words)


@pytest.mark.fault("F6")
def test_limits_of_archives_can_be_set(tmp_path):
    entries = [(f"{i}.bin", os.urandom(1000)) for i in range(20)]
    path = write_zip(tmp_path / "a.zip", entries)
    refused_archive(path, "data.max_unpacked_bytes=19999", max_unpacked_bytes=19_999)
    refused_archive(path, "data.max_unpacked_files=19", max_unpacked_files=19)
    main.run(None, "download", None, str(path), tmp_path / "out")
    assert everything(tmp_path / "out") == {name for name, _ in entries}


@pytest.mark.fault("F6")
def test_overlapping_entries_of_a_zip_are_refused(tmp_path):
    """The same kilobytes as the content of many entries: no entry alone is a bomb."""
    path = write_zip(tmp_path / "evil.zip", [(f"{i}.txt", os.urandom(999)) for i in range(3)])
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02") + 42  # where the directory says the last one begins
    content[at : at + 4] = bytes(4)
    path.write_bytes(content)
    refused_archive(path, "inside another entry")


@pytest.mark.fault("F6")
def test_zips_that_lie_are_refused(tmp_path):
    write_zip(tmp_path / "a.zip", [("a.bin", os.urandom(5000))], zipfile.ZIP_STORED)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    flipped, smaller, locked = bytearray(content), bytearray(content), bytearray(content)
    flipped[2000] ^= 1
    at = content.rindex(b"PK\x01\x02")
    smaller[at + 24 : at + 28] = struct.pack("<I", 10)  # its size unpacked
    locked[at + 8] |= 1
    for name, damaged in {"flipped": flipped, "smaller": smaller, "locked": locked}.items():
        (tmp_path / f"{name}.zip").write_bytes(damaged)
        refused_archive(tmp_path / f"{name}.zip", "encrypted" if name == "locked" else "damaged")


@pytest.mark.fault("F5", "F6")
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_good_archives_are_unpacked_and_replace_nothing(tmp_path, kind):
    content = {"a/1.bin": os.urandom(999), "a/b/2.bin": b"", "ü 3.bin": os.urandom(99)}
    path, out = tmp_path / f"a.{kind}", tmp_path / "out"
    if kind == "zip":
        write_zip(path, content.items())
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.addfile(member("./", tarfile.DIRTYPE))
            for name, data in content.items():
                archive.addfile(member(f"./{name}", size=len(data)), io.BytesIO(data))
    main.run(None, "download", None, str(path), out)
    assert {n: (out / n).read_bytes() for n in content} == content
    assert everything(out) == {*content, "a", "a/b"}
    (out / "a" / "1.bin").unlink()
    main.run(None, "download", None, str(path), out)  # what a killed run has left is completed
    (out / "a" / "1.bin").write_bytes(b"mine")
    said = refused(DataError, 3, None, "download", None, str(path), out)
    assert "1.bin" in said
    assert (out / "a" / "1.bin").read_bytes() == b"mine"


# F11: downloads


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the server's `content` by path: bytes, or an address to go to."""

    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.content.get(self.path)
        if content is None:
            self.send_error(404)
        elif isinstance(content, str):
            self.send_response(302)
            self.send_header("Location", content)
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + 500 * ("/short" in self.path)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.asked = {}, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """(the server, VOC as a miniature that it has, a folder to be data.root)."""
    miniatures.voc(tmp_path / "made" / "VOC2012")
    with tarfile.open(tmp_path / "voc.tar", "w") as archive:
        archive.add(tmp_path / "made", "VOCdevkit")
    content = (tmp_path / "voc.tar").read_bytes()
    server.content = {"/voc.tar": content, "/short.tar": content}
    digest = hashlib.sha256(content).hexdigest()
    urls = (f"{server.url}/nothing.tar", f"{server.url}/voc.tar")
    archive = Archive("voc.tar", urls, digest, len(content), "VOCdevkit/VOC2012")
    dataset = datasets.DATASETS["voc"]._replace(archives=(archive,))
    monkeypatch.setitem(datasets.DATASETS, "voc", dataset)
    return server, dataset, tmp_path / "root"


def of(dataset, **changes):
    """The dataset with its archive changed so."""
    return dataset._replace(archives=(dataset.archives[0]._replace(**changes),))


@pytest.mark.fault("F11")
def test_a_dataset_is_downloaded_from_who_answers_and_only_once(published, capsys):
    server, dataset, root = published
    config = configuration.load(f"{CONFIGS}/v3plus.py:xception_65,voc", {"data.root": str(root)})
    main.run(config, "download", None)
    assert server.asked == ["/nothing.tar", "/voc.tar"]
    said = capsys.readouterr().out
    assert "no answer: HTTPError: HTTP Error 404" in said
    assert "by hand: SBD's benchmark.tgz" in said
    assert len(dataset.find(root, "train_aug").images) == 3
    assert datasets.source("voc", root, "val", 21, 255)[0]["label"].shape == miniatures.SIZE
    main.run(config, "download", None)  # its files are there
    (root / download.DONE).unlink()
    main.run(config, "download", None)  # the archive is there, and half-unpacked files might be
    assert len(server.asked) == 2
    assert not [name for name in everything(root) if Path(name).name.startswith(".")]


@pytest.mark.fault("F11")
def test_a_wrong_digest_ends_with_3_and_leaves_nothing(published):
    server, dataset, root = published
    true = dataset.archives[0].sha256
    server.content["/voc.tar"] = server.content["/voc.tar"][:-1] + b"\1"
    config = configuration.load(f"{CONFIGS}/v3plus.py:xception_65,voc", {"data.root": str(root)})
    said = refused(DataError, 3, config, "download", None)
    for words in ("voc.tar", true, hashlib.sha256(server.content["/voc.tar"]).hexdigest()):
        assert words in said
    assert "deleted. Try again" in said
    assert everything(root) == set()


@pytest.mark.fault("F11")
def test_more_than_the_archive_is_not_taken(published):
    server, dataset, root = published
    server.content["/voc.tar"] += bytes(40 * 2**20)
    with pytest.raises(DataError, match=r"its SHA-256 is .* it was deleted"):
        download.download("voc", dataset, root)
    assert everything(root) == set()


@pytest.mark.fault("F11")
def test_an_archive_put_there_by_hand_is_compared_and_kept(published):
    server, dataset, root = published
    root.mkdir()
    (root / "voc.tar").write_bytes(b"another")
    with pytest.raises(DataError, match=r"its SHA-256 is .*remove it, and the same command"):
        download.download("voc", dataset, root)
    assert (root / "voc.tar").read_bytes() == b"another"
    (root / "voc.tar").write_bytes(server.content["/voc.tar"])
    download.download("voc", dataset, root)
    assert (root / "JPEGImages" / "a.jpg").is_file()
    assert not server.asked


@pytest.mark.fault("F11")
def test_nobody_answers(published, tmp_path):
    """Cut off, redirected to a file, of no protocol that is spoken, gone: each is told."""
    server, dataset, root = published
    secret = tmp_path / "voc.tar"
    server.content["/moved.tar"] = secret.as_uri()
    urls = (f"{server.url}/short.tar?", f"{server.url}/moved.tar", secret.as_uri(), "ftp://x/voc")
    server.content["/short.tar?"] = server.content["/short.tar"][:-99]
    gone = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    gone.server_close()
    urls += (f"http://127.0.0.1:{gone.server_port}/voc.tar",)
    with pytest.raises(DataError, match=r"put it into .* by hand") as caught:
        download.download("voc", of(dataset, urls=urls), root)
    assert all(url in str(caught.value) for url in urls)
    assert "ended after" in str(caught.value)
    assert everything(root) == set()


@pytest.mark.fault("F11")
def test_what_is_not_open_is_told_and_every_digest_is_one(tmp_path):
    config = configuration.load(f"{CONFIGS}/v3plus.py:xception_65,cityscapes")
    assert "--config.data.root=DIR" in refused(ConfigError, 2, config, "download", None)
    said = refused(DataError, 3, config, "download", None, output=tmp_path)
    assert "gtFine_trainvaltest.zip" in said
    config = configuration.load(f"{CONFIGS}/v3plus.py:xception_65,folder")
    assert "voc" in refused(ConfigError, 2, config, "download", None, output=tmp_path)
    for dataset in datasets.DATASETS.values():
        for archive in dataset.archives:
            assert len(bytes.fromhex(archive.sha256)) == 32
            assert archive.urls
            assert archive.size > 0


# F7, F8: images


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content)
    )  # fmt: skip


def png(width, height, *before, bits=8, data=None):
    """A grey PNG, black unless there is `data`, with these chunks before it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    if data is None:
        packer, row = zlib.compressobj(9), bytes(1 + -(-width * bits // 8))
        data = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    signature = b"\x89PNG\r\n\x1a\n"
    return b"".join((signature, header, *before, chunk(b"IDAT", data), chunk(b"IEND", b"")))


def folder_with(root, name, content):
    """A small dataset one of whose images or masks has this content."""
    write_folder(root)
    (root / name).write_bytes(content)
    return root


@pytest.mark.fault("F7")
@pytest.mark.parametrize("mode", ["check_data", "score"])
def test_a_bomb_of_50000_by_50000_px_is_refused_by_its_header(tmp_path, mode):
    """A true PNG of 50 kB, not a damaged one: it would unfold to 2.5 GB."""
    content = png(50_000, 50_000, bits=1)
    assert len(content) < 10**6
    name = "masks/scene 1.png" if mode == "score" else "images/scene 1.png"
    root = folder_with(tmp_path / "data", name, content)
    if mode == "score":
        arguments = ["--mode=score", f"--input={root}/masks", f"--truth={root}/masks"]
    else:
        (root / "images" / "scene 1.jpg").unlink()
        arguments = command(root, tmp_path / "w", "check_data")[3:]
    code, said, growth = grown(*arguments)
    assert code == 3, said
    assert f"{name}: too large to open safely: 50000x50000 px are 2500000000, more than" in said
    assert "data.max_pixels=178956970" in said
    assert growth < 300


@pytest.mark.fault("F7")
def test_the_limit_of_pixels_holds_everywhere_and_can_be_set(trained, tmp_path):
    """Images here have 2000 px."""
    root, workdir, _ = trained
    low, enough = ({"data__max_pixels": n} | {"data__label_map": None} for n in (1999, 2000))
    tiny = {"model__backbone": "tiny_backbone:Tiny"}
    image = str(root / "images" / "scene 1.jpg")
    runs = {
        "check_data": (),
        "predict": (image, tmp_path / "predictions"),
        "score": (str(root / "masks"), tmp_path / "score"),
        "train": (),
    }
    for mode, where in runs.items():
        options = {"truth": str(root / "masks")} if mode == "score" else {}
        place = tmp_path / mode if mode in ("check_data", "train") else workdir
        said = refused(DataError, 3, small(root, **low, **tiny), mode, place, *where, **options)
        assert "data.max_pixels=1999" in said, mode
        assert "--config.data.max_pixels=2000" in said
        if mode != "train":
            main.run(small(root, **enough, **tiny), mode, place, *where, **options)
    for i in range(2):
        Image.new("L", (50, 40)).save(tmp_path / f"2008_00000{i}.png")
    packed = configuration.load(
        f"{CONFIGS}/v3plus.py:xception_65,voc", {"predict.archive": "voc", "data.max_pixels": 1999}
    )
    said = refused(DataError, 3, packed, "archive", tmp_path, f"{tmp_path}/2008*.png")
    assert "data.max_pixels=1999" in said


@pytest.mark.fault("F7")
def test_the_limit_of_pixels_holds_in_worker_processes(data_folder):
    for path in ("images/scene 1.jpg", "masks/scene 1.png"):  # this process itself reads scene 0
        Image.new("L", (60, 50)).save(data_folder / path)
    image_files.limit_pixels(2999)
    with stream(data_folder, workers=1) as batches, pytest.raises(DataError, match="pixels=2999"):
        take(batches, 3)
    image_files.limit_pixels(3000)
    with stream(data_folder, workers=1) as batches:
        assert len(take(batches, 3)) == 3


@pytest.mark.fault("F7")
def test_defaults_of_limits_are_those_of_the_configuration():
    data = configuration.load(f"{CONFIGS}/v3plus.py").data
    limits = (data.max_pixels, data.max_unpacked_bytes, data.max_unpacked_files)
    assert limits == (image_files.MAX_PIXELS, download.MAX_BYTES, download.MAX_FILES)


def unfolding(kind):
    """A text chunk that unfolds to 300 MB."""
    packer = zlib.compressobj(9)
    text = b"".join([*(packer.compress(bytes(2**20)) for _ in range(300)), packer.flush()])
    heads = {b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0\0\0", b"iCCP": b"Profile\0\0"}
    return chunk(kind, heads[kind] + text)


@pytest.mark.fault("F8")
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_chunks_that_unfold_are_refused(tmp_path, kind):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(50, 40, unfolding(kind)))
    for read in (image_files.read_image, image_files.read_mask):
        with pytest.raises(UnreadableError, match=r"bomb\.png: damaged .*replace or remove it"):
            read(path)


@pytest.mark.fault("F8")
def test_text_chunks_that_unfold_take_no_memory(tmp_path):
    content = png(50, 40, *[unfolding(b"zTXt")] * 3)
    root = folder_with(tmp_path / "data", "masks/scene 1.png", content)
    arguments = command(root, tmp_path / "w", "check_data")[3:]
    code, said, growth = grown(*arguments)
    assert code == 3, said
    assert "scene 1.png: damaged or truncated mask" in said
    assert growth < 200


def fits():
    cards = ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 50", "NAXIS2  = 40", "END")
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)


def saved(form, **options):
    file = io.BytesIO()
    Image.new("RGB", (50, 40)).save(file, form, **options)
    return file.getvalue()


@pytest.mark.fault("F8")
@pytest.mark.parametrize("form", ["FITS", "EPS", "GIF", "PDF", "ICO", "TGA", "SGI", "PCX"])
def test_formats_that_are_not_on_the_list_are_refused(tmp_path, form):
    """Whatever they are called. Most of them Pillow would read, EPS by running Ghostscript."""
    content = fits() if form == "FITS" else saved(form)
    if form in ("FITS", "EPS", "GIF", "PCX"):
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == form
    for name, read in (("a.png", image_files.read_image), ("b.png", image_files.read_mask)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableError, match=rf"{name}: not a readable .*are read"):
            read(tmp_path / name)


# F9: names in files


OUTSIDE = ["../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\secret", "C:secret", "..\\secret"]


@pytest.mark.fault("F9")
@pytest.mark.parametrize("name", OUTSIDE)
def test_lists_are_confined_to_the_dataset(data_folder, tmp_path, name):
    (data_folder / "train.txt").write_text(f"scene 0\n{name}\n")
    config = small(data_folder, data__train_split="train")
    said = refused(DataError, 3, config, "check_data", tmp_path / "w")
    assert f"train.txt: names must stay inside the dataset:\n  {name}" in said
    miniatures.voc(tmp_path / "voc")
    miniatures.text(tmp_path / "voc" / "ImageSets" / "Segmentation" / "val.txt", ["c", name])
    config = configuration.load(
        f"{CONFIGS}/v3plus.py:mobilenet_v2,voc",
        {"data.root": str(tmp_path / "voc"), "data.train_split": "val"},
    )
    said = refused(DataError, 3, config, "check_data", tmp_path / "w")
    assert "val.txt: names must stay inside the dataset" in said


@pytest.mark.fault("F9")
@pytest.mark.parametrize("name", OUTSIDE)
def test_file_names_of_annotations_are_confined_to_the_dataset(tmp_path, name):
    given = {
        "images": [{"id": 1, "file_name": name, "height": 4, "width": 4}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(given))
    config = configuration.load(
        f"{CONFIGS}/v3plus.py:mobilenet_v2,coco_json", {"data.root": str(tmp_path)}
    )
    said = refused(DataError, 3, config, "check_data", tmp_path / "w")
    assert "train.json: names must stay inside the dataset" in said


@pytest.mark.fault("F9")
def test_links_that_the_user_made_are_followed(tmp_path):
    """Datasets on several disks are put together by links; no list and no archive can make one."""
    elsewhere, root = write_folder(tmp_path / "disk"), tmp_path / "data"
    root.mkdir()
    for name in ("images", "masks"):
        (root / name).symlink_to(elsewhere / name)
    (root / "all.txt").write_text("scene 0\n")
    main.run(small(root), "check_data", tmp_path / "w")


# F10: predictions


@pytest.mark.fault("F10")
def test_predictions_neither_collide_nor_escape_nor_replace_what_they_are_of(trained, tmp_path):
    root, workdir, _ = trained
    names = [
        *("a.jpg", "a.png", "A.png", "sub/a.png", "e\u0301.png", "\u00e9.png", "a..png"),
        *("x\ny.png", f"x{ESCAPE}y.png", "C:\\x.png", "sub/CON.png", "=1+1.png"),
    ]
    folder, out = tmp_path / "in", tmp_path / "deep" / "out"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16)).save(folder / name)
    before = {name: (folder / name).read_bytes() for name in names}
    out.parent.mkdir()
    config = small(root, model__backbone="tiny_backbone:Tiny")
    main.run(config, "predict", workdir, f"{tmp_path}/deep/../in/**/*", out)
    labels = [p.relative_to(out / "labels") for p in (out / "labels").rglob("*") if p.is_file()]
    assert len({str(p).casefold() for p in labels}) == len(names)
    assert all(str(path).isprintable() for path in labels)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "deep"}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]
    assert {name: (folder / name).read_bytes() for name in names} == before

    shutil.copytree(folder, tmp_path / "mine" / "labels")
    said = refused(
        *(ConfigError, 2, config, "predict", workdir),
        *(str(tmp_path / "mine" / "labels"), tmp_path / "mine"),
    )
    assert "would overwrite the input" in said
    (tmp_path / "linked" / "labels").mkdir(parents=True)
    (tmp_path / "linked" / "labels" / "a.png").symlink_to(folder / "a.png")
    said = refused(
        ConfigError, 2, config, "predict", workdir, str(folder / "a.png"), tmp_path / "linked"
    )
    assert "would overwrite the input" in said


# F12: configurations and names


@pytest.mark.fault("F12")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evil.yaml", "!!python/object/apply:os.system ['touch {canary}']"),
        ("evil.yml", "!!python/object/apply:os.system ['touch {canary}']"),
        ("evil.json", "open('{canary}', 'w')"),  # Python, which would be run whatever its name
        ("evil", "open('{canary}', 'w')"),
        ("evil.PY.txt", "open('{canary}', 'w')"),
    ],
)
def test_only_python_files_are_configurations(tmp_path, name, content):
    path, canary = tmp_path / name, tmp_path / "canary"
    path.write_text(content.format(canary=canary))
    (tmp_path / "flags").write_text(f"--config={path}\n")
    plain = f"--config={CONFIGS}/v3plus.py"
    for arguments, words in (
        ([f"--config={path}"], "a configuration is a Python file"),
        ([f"--config={path}:preset"], "a configuration is a Python file"),
        (["--config", str(path)], "a configuration is a Python file"),
        ([f"--flagfile={tmp_path / 'flags'}"], "a configuration is a Python file"),
        ([plain, f"--config={path}"], "--config is given 2 times"),
    ):
        with pytest.raises(ConfigError, match=words):
            command_line.parse(["deeplab", *arguments, f"--workdir={tmp_path / 'w'}"])
    with pytest.raises(ConfigError, match="a configuration is a Python file"):
        configuration.load(str(path))
    assert not canary.exists()


@pytest.mark.fault("F12")
def test_a_yaml_configuration_ends_the_program_with_2_and_a_sentence(tmp_path):
    path, canary = tmp_path / "evil.yaml", tmp_path / "canary"
    path.write_text(f"!!python/object/apply:os.system ['touch {canary}']")
    code, said, _ = grown(f"--config={path}", f"--workdir={tmp_path / 'w'}")
    assert code == 2, said
    assert "a configuration is a Python file, FILE.py" in said
    assert everything(tmp_path) == {"evil.yaml"}


@pytest.mark.fault("F12")
def test_a_configuration_that_is_written_runs_nothing_of_its_paths(data_folder, tmp_path):
    canary = tmp_path / "canary"
    there = f"{canary}".replace("/", "!")
    code = f'import pathlib\npathlib.Path("{there}".replace("!", chr(47))).touch()'
    evil = f'"""\n{code}\n"""\\N'
    root = data_folder.rename(tmp_path / f"data {evil}")
    main.run(
        small(root), "check_data", tmp_path / evil, spec=f"{CONFIGS}/v3plus.py:mobilenet_v2,folder"
    )
    written = tmp_path / evil / "check_data" / "config.py"
    assert configuration.load(str(written)).data.root == str(root)
    assert not canary.exists()


@pytest.mark.fault("F12")
def test_what_is_stored_of_a_run_is_plain_json(trained):
    _, workdir, _ = trained
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["data"]["max_pixels"] == image_files.MAX_PIXELS
    assert "!!python" not in (workdir / "config.json").read_text()
    with pytest.raises(ConfigError, match=r"a run's config\.json is a record of it"):
        configuration.load(str(workdir / "config.json"))


@pytest.mark.fault("F12")
def test_class_names_stay_text_in_all_that_is_written(trained):
    _, workdir, _ = trained
    page = (workdir / "eval" / "report.html").read_text()
    assert MARKUP not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    with (workdir / "eval" / "confusion.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == [MARKUP, "'=1+cmd|' /C calc'!A0", "../../outside"]
    assert [row[0] for row in rows[1:]] == rows[0][1:]
    assert not [path for path in workdir.parent.parent.glob("*") if "outside" in path.name]


@pytest.mark.fault("F12")
def test_class_names_stay_text_in_model_cards(tmp_path):
    """A file's header says where it comes from: it goes into the README beside the import."""
    weights = tmp_path / f"{MARKUP}.safetensors".replace("/", "")
    values, _ = seeded("tf_Ddm05_mobilenetv2_dm05_os16_129")
    safetensors.numpy.save_file(values, weights)
    main.run(None, "import", tmp_path / "one", str(weights))
    again = safetensors.numpy.load_file(tmp_path / "one" / "model.safetensors")
    description = json.loads((tmp_path / "one" / "config.json").read_text())
    description["source"] = MARKUP + ESCAPE
    header = {"deeplab_jax": json.dumps(description)}
    safetensors.numpy.save_file(again, tmp_path / "evil.safetensors", header)
    main.run(None, "import", tmp_path / "two", str(tmp_path / "evil.safetensors"))
    card = (tmp_path / "two" / "README.md").read_text()
    assert MARKUP not in card
    assert "\x1b" not in card


@pytest.mark.fault("F12")
def test_nothing_reaches_the_terminal_that_it_would_obey(data_folder, tmp_path):
    (data_folder / "images" / f"scene{ESCAPE}.jpg").write_bytes(b"nothing")
    (data_folder / "masks" / f"scene{ESCAPE}.png").write_bytes(b"nothing")
    done = run(command(data_folder, tmp_path / "w", "check_data"))
    assert done.returncode == 3, done.stderr
    shown = "scene\\x1b]0;owned\\x07\\x1b[31m"
    assert shown in done.stdout + done.stderr
    assert not {"\x1b", "\x07"} & {*done.stdout, *done.stderr}
    with pytest.raises(UserError) as caught:  # the same that the program said
        main.run(small(data_folder), "check_data", tmp_path / "w")
    assert ESCAPE in str(caught.value)


@pytest.mark.fault("F12")
@pytest.mark.parametrize("say", [output.say, output.complain])
def test_control_characters_are_shown_not_obeyed(say, capsys):
    say("a\tb\nc é 日本 \x1b[2J \r \x9b \x00 \u202e end")
    found = capsys.readouterr()
    shown = "a\tb\nc é 日本 \\x1b[2J \\r \\x9b \\x00 \\u202e end\n"
    assert found.out + found.err == shown


@pytest.mark.fault("F12")
def test_class_names_with_escapes_are_refused(data_folder, tmp_path):
    classes = [{"name": "road"}, {"name": f"sky{ESCAPE}"}, {"name": "car"}]
    (data_folder / "classes.json").write_text(json.dumps({"classes": classes}))
    said = refused(DataError, 3, small(data_folder), "check_data", tmp_path / "w")
    assert "class 1 needs a printable name" in said
    assert "\x1b" not in said
