"""PyTorch's files: read without PyTorch, refused if they want more, in bounded time and memory."""

import base64
import io
import json
import os
import pathlib
import pickle
import resource
import time
import zipfile

import pytest

from models.backbones import pth

ORACLE = json.loads(pathlib.Path(__file__).with_name("oracle.json").read_text())


@pytest.fixture(params=ORACLE["files"])
def torch_file(request, tmp_path):
    path = tmp_path / f"{request.param}.pth"
    path.write_bytes(base64.b64decode(ORACLE["files"][request.param]))
    return path


def test_tensors_that_pytorch_saved_are_read(torch_file):
    found = pth.load(torch_file)
    assert {name: array.tolist() for name, array in found.items()} == ORACLE["tensors"]
    assert [found[n].dtype.name for n in ("float", "count", "half")] == [
        "float32", "int64", "float16",
    ]  # fmt: skip
    assert found["empty"].shape == (0, 4)


@pytest.mark.parametrize("kept", (0.2, 0.5, 0.9))
def test_a_file_that_is_cut_short_is_refused(torch_file, kept):
    data = torch_file.read_bytes()
    torch_file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=f"{torch_file.name}: not PyTorch weights"):
        pth.load(torch_file)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def zipped(path, payload):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/byteorder", "little")


def legacy(path, payload):
    numbers = (pickle.dumps(number, 2) for number in (pth._MAGIC, pth._PROTOCOL, {}))
    path.write_bytes(b"".join(numbers) + payload + pickle.dumps([], 2))


@pytest.mark.parametrize("write", (zipped, legacy))
def test_a_file_that_wants_something_called_is_refused_and_calls_nothing(tmp_path, write):
    path, marker = tmp_path / "weights.pth", tmp_path / "called"
    write(path, pickle.dumps({"weight": Malicious(marker)}, 2))
    with pytest.raises(ValueError, match=r"weights\.pth.*requests posix\.mkdir, which no tensor"):
        pth.load(path)
    assert not marker.exists()


def test_a_name_with_a_line_end_is_refused_in_one_line(tmp_path):
    zipped(tmp_path / "weights.pth", b"\x80\x02ccollections\nOrd\x1cDict\n)R.")
    with pytest.raises(
        ValueError, match=r"requests collections\.Ord Dict, which no tensor"
    ) as found:
        pth.load(tmp_path / "weights.pth")
    assert len(str(found.value).splitlines()) == 1


class Call:
    """Pickles as a call of a function that the reader knows, with any arguments."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


FLOATS = object()  # pickled as the class of PyTorch's storages of float32


class Named(pickle._Pickler):
    """A pickler that can name functions of modules that are not there, and storages."""

    def persistent_id(self, value):
        return ("storage", *value[1:]) if isinstance(value, tuple) and value[:1] == ("S",) else None

    def save(self, value, save_persistent_id=True):
        if value is FLOATS:
            return self.write(b"ctorch\nFloatStorage\n")
        if isinstance(value, Call):
            self.write(b"ctorch._utils\n" + value.name.encode() + b"\n")
            self.save(value.arguments)
            return self.write(b"R")
        return super().save(value, save_persistent_id)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (1 << 40,), (0,)), (0, (2, 2), (-1, 1))],
    ids=("too long", "too far", "unfolded to terabytes", "backwards"),
)
def test_a_view_beyond_its_storage_is_refused(tmp_path, offset, shape, strides):
    stream = io.BytesIO()
    storage = ("S", FLOATS, "0", "cpu", 4)
    call = Call("_rebuild_tensor_v2", storage, offset, shape, strides, False, {})
    Named(stream, 2).dump({"weight": call})
    path = tmp_path / "weights.pth"
    zipped(path, stream.getvalue())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(ValueError, match="'weight' (reaches beyond its storage|has no sizes)"):
        pth.load(path)


@pytest.mark.parametrize("content", (b"", b"\x80\x02]q\x00.", b"PK\x05\x06" + bytes(18), b"text"))
def test_what_is_no_file_of_weights_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth: not PyTorch weights"):
        pth.load(path)
    with pytest.raises(ValueError, match=r"none\.pth: cannot be read"):
        pth.load(tmp_path / "none.pth")


def pickled(body):
    return b"\x80\x02" + body + b"."


NEST = b")" + b"q\x00h\x00\x86" * 60  # ((), ()), then each twice in the next: 2**60 in all
STORED = b"ctorch\nFloatStorage\n"
BOMBS = {
    "nested tuple as a name": (b"}" + NEST + b"K\x01s", "a tuple is the name of a tensor"),
    "nested tuple as a tensor": (b"}X\x01\0\0\0a" + NEST + b"s", "'a' is a tuple, not a tensor"),
    "nested tuple as a storage's name": (
        b"(X\x07\0\0\0storage" + STORED + NEST + b"NK\x01tQ", "no name or size"
    ),
    "nested tuple as a kind": (b"(" + NEST + STORED + b"K\x00NK\x01tQ", "something other than"),
    "nested tuple as a module": (NEST + b"X\x01\0\0\0a\x93)R", "a tuple names a function"),
    "nested tuple called": (NEST + b")R", "it calls something that is not a function"),
    "place 2**31 of the memo": (b"}r\xff\xff\xff\x7f", ""),
    "text of 4 GB": (b"X\xff\xff\xff\xff", "a name of 4,294,967,295 bytes"),
    "attributes of a function": (b"ctorch._utils\n_rebuild_tensor\n}b", "it sets attributes"),
    "attributes of a class": (STORED + b"}b", "it sets attributes"),
    "a million empty lists": (b"]" * (pth.OPERATIONS + 1), "more than 2,097,152 operations"),
    "unmatched ends": (b"tue", "not PyTorch weights"),
    "items below the mark": (b"}(K\x01s", "it is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("write", (zipped, legacy))
def test_time_and_memory_are_bounded(tmp_path, limited, write, name):
    body, message = BOMBS[name]
    path = tmp_path / "weights.pth"
    write(path, pickled(body))
    before = dict(vars(pth._called)), time.process_time()
    if message:
        with pytest.raises(ValueError, match=message):
            pth.load(path)
    else:
        assert pth.load(path) == {}
    assert time.process_time() - before[1] < 20 and vars(pth._called) == before[0]


@pytest.fixture
def limited():
    """Half a gigabyte more than now, at most."""
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def tensors(count, values, name="w"):
    """A zip file of tensors that are all the same storage of float32."""
    stream = io.BytesIO()
    storage = ("S", FLOATS, "0", "cpu", values)
    call = Call("_rebuild_tensor_v2", storage, 0, (values,), (1,), False, {})
    Named(stream, 2).dump({f"{name}{i}": call for i in range(count)})
    return stream.getvalue()


def test_values_may_be_shared_but_not_multiplied(tmp_path):
    path = tmp_path / "weights.pth"
    for count, fine in ((2, True), (100, False)):
        zipped(path, tensors(count, 1000))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data/0", bytes(4000))
        if fine:
            assert sorted(pth.load(path)) == ["w0", "w1"]
        else:
            with pytest.raises(ValueError, match="take more than 4 times the file's size"):
                pth.load(path)


def test_compressed_values_and_storages_larger_than_the_file_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    zipped(path, tensors(1, 1 << 20))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(4 << 20))
    with pytest.raises(ValueError, match="its storages are larger than the file"):
        pth.load(path)
    zipped(path, tensors(1, 4))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(ValueError, match="archive/data/0 is compressed"):
        pth.load(path)


def test_special_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="it is not a regular file"):
        pth.load(tmp_path / "weights.pth")
