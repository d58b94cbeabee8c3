"""get_npu_format follows the storage, as on a device."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from npu_lowering.operators import storage_format

NZ = 29


@pytest.fixture
def torch_npu(torchair):
    del torchair
    import torch_npu

    return torch_npu


@pytest.fixture
def cast(torch_npu):
    return torch_npu.npu_format_cast(torch.arange(64.0).view(2, 32), NZ)


def loaded(value, **how):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **how)


KEPT = {
    "parameter": nn.Parameter,
    "detached": torch.Tensor.detach,
    "view of the whole": lambda t: t.view(-1),
    "view as another dtype": lambda t: t.view(torch.int32),
    "transposed": lambda t: t.t(),
    "deep copy": copy.deepcopy,
    "deep copy of a parameter": lambda t: copy.deepcopy(nn.Parameter(t)),
    "pickled": lambda t: pickle.loads(pickle.dumps(t)),
    "saved and loaded": loaded,
    "saved and loaded as a parameter": lambda t: loaded({"w": nn.Parameter(t)})["w"],
    "weights only": lambda t: loaded(t, weights_only=True),
    "data of a parameter": lambda t: replaced(nn.Parameter(torch.zeros(2, 32)), t),
}


def replaced(parameter, data):
    parameter.data = data
    return parameter


@pytest.mark.parametrize("made", KEPT.values(), ids=KEPT)
def test_it_is_kept(made, cast, torch_npu):
    result = made(cast)
    assert torch_npu.get_npu_format(result) == NZ
    values = result.detach().flatten().view(torch.float32)
    assert torch.equal(values.sort()[0], cast.flatten())


def test_it_is_an_enumeration_as_torch_npu_gives_it(cast, torch_npu):
    if hasattr(torch_npu, "Format"):  # pragma: no branch -- newer releases
        assert torch_npu.get_npu_format(cast) is torch_npu.Format.FRACTAL_NZ
    assert torch.ops.npu.get_npu_format(cast) == NZ


LOST = {
    "computed": lambda t: t + 1,
    "converted": torch.Tensor.half,
    "cast back": lambda t: torch.ops.npu.npu_format_cast(t, 2),
}


@pytest.mark.parametrize("made", LOST.values(), ids=LOST)
def test_what_has_a_storage_of_its_own_has_a_format_of_its_own(made, cast, torch_npu):
    assert torch_npu.get_npu_format(made(cast)) == 2
    assert torch_npu.get_npu_format(cast) == NZ


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), 2), ((3,), 2), ((2, 3), 2), ((1, 2, 3), 2), ((2, 3, 4, 5), 0), ((1,) * 5, 30)],
)
def test_a_tensor_that_was_not_cast(shape, expected, torch_npu):
    assert torch_npu.get_npu_format(torch.ones(shape)) == expected


def test_loading_a_state_copies_into_the_format_that_is_there(cast, torch_npu):
    source, target = nn.Linear(32, 2, bias=False), nn.Linear(32, 2, bias=False)
    source.weight.data = cast
    assert torch_npu.get_npu_format(source.state_dict()["weight"]) == NZ
    target.load_state_dict(source.state_dict())
    assert torch_npu.get_npu_format(target.weight) == 2
    assert torch.equal(target.weight, cast)
    source.load_state_dict({"weight": torch.zeros(2, 32)})
    assert torch_npu.get_npu_format(source.weight) == NZ
    target.load_state_dict({"weight": cast}, assign=True)
    assert torch_npu.get_npu_format(target.weight) == NZ


def test_a_file_is_torchs_own(cast, run_python, tmp_path):
    torch.save(cast, tmp_path / "cast.pt")
    program = f"""
import torch
print(torch.load({str(tmp_path / "cast.pt")!r}, weights_only=True).sum().item())
"""
    plain = run_python(program, env={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"})
    assert plain == f"{cast.sum().item()}\n"


def test_in_place(torch_npu):
    whole = torch.arange(64.0).view(2, 32)
    view = whole[1:]
    assert torch_npu.npu_format_cast_(whole, NZ) is whole
    assert torch_npu.get_npu_format(whole) == NZ
    # As on a device: the storage is a new one, and who shared the old one still has that.
    assert torch_npu.get_npu_format(view) == 2
    assert whole.data_ptr() != view.data_ptr() - 32 * 4
    assert torch.equal(whole[1:], view)
    again = whole.data_ptr()
    torch_npu.npu_format_cast_(whole, NZ)
    assert whole.data_ptr() == again
    other = torch.ones(2, 32)
    torch_npu.npu_format_cast_(other, whole)
    assert torch_npu.get_npu_format(other) == NZ
    assert torch.equal(other, torch.ones(2, 32))


def test_a_fake_tensor(torch_npu):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(4, 2, 32).transpose(0, 1)
        cast = torch_npu.npu_format_cast(fake, NZ)
        assert torch_npu.get_npu_format(cast) == NZ
        assert torch_npu.get_npu_format(fake) == 2
        assert cast.stride() == fake.stride()


def test_notes_of_storages_that_are_gone_are_dropped():
    kept = torch.ones(1)
    storage_format.remember(kept, NZ)
    for _ in range(1000):
        storage_format.remember(torch.ones(1), 3)
    assert len(storage_format._formats) < 200
    assert storage_format.format_of(kept) == NZ
