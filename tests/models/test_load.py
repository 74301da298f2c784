"""Any name becomes a model or one line that says what to do; a GGUF file is unpacked once, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.odd_models import tiny_t5, write_gguf
from tests.tiny import D_MODEL, N_LAYERS, tiny_model, tiny_tokenizer

from steersman.errors import ModelError, StorageError, UnsupportedModel
from steersman.models import load
from steersman.models.language_model import LanguageModel
from steersman.models.load import check_gguf, choose_device, choose_dtype, default_asset, load_model, resolve
from steersman.settings import Settings

CPU = torch.device("cpu")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A cache of its own, and no network."""
    return Settings(cache=tmp_path / "cache", device="cpu", dtype="float32", offline=True)


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers and 32 dimensions, as llama.cpp stores it."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model as `save_pretrained` leaves it."""
    return _save(tiny_model(), tmp_path / "model")


def _save(model: LanguageModel, path: Path) -> Path:
    model.hf.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


def _refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ModelError) as refused:
        call()
    message = str(refused.value)
    assert "\n" not in message
    return message


# --- folders


@torch.no_grad()
def test_a_saved_folder_loads_as_the_model_it_was(folder: Path, settings: Settings) -> None:
    ids = torch.tensor([[5, 70, 99]])
    before, model = tiny_model(), load_model(str(folder), settings=settings)
    assert torch.equal(model.hf(ids).logits, before.hf(ids).logits)
    assert model.ref.matches(before.ref)
    assert model.name == str(folder)
    assert not model.hf.training
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
    assert model.encode("Ahoy") == before.encode("Ahoy")
    assert not settings.cache.exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_number_format_is_the_argument_else_the_settings(folder: Path, settings: Settings, dtype: str) -> None:
    assert load_model(str(folder), dtype=dtype, settings=settings).dtype == getattr(torch, dtype)
    assert load_model(str(folder), settings=settings).dtype == torch.float32


def test_settings_are_read_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERSMAN_DTYPE", "float16")
    monkeypatch.setenv("STEERSMAN_DEVICE", "cpu")
    assert load_model(str(folder)).dtype == torch.float16


def test_a_folder_without_a_model_is_refused(tmp_path: Path, settings: Settings) -> None:
    assert "config.json" in _refusal(lambda: load_model(str(tmp_path), settings=settings))


def test_a_folder_that_lost_its_weights_is_refused(folder: Path, settings: Settings) -> None:
    (folder / "model.safetensors").unlink()
    assert str(folder) in _refusal(lambda: load_model(str(folder), settings=settings))


def test_truncated_weights_are_refused(folder: Path, settings: Settings) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert str(folder) in _refusal(lambda: load_model(str(folder), settings=settings))


def test_a_folder_that_lost_its_tokenizer_is_refused(folder: Path, settings: Settings) -> None:
    for path in (*folder.glob("tokenizer*"), *folder.glob("special*")):
        path.unlink()
    assert str(folder) in _refusal(lambda: load_model(str(folder), settings=settings))


def test_a_damaged_config_is_refused(folder: Path, settings: Settings) -> None:
    for content in ("{", "{}", '{"model_type": "no-such-thing"}'):
        (folder / "config.json").write_text(content)
        assert str(folder) in _refusal(lambda: load_model(str(folder), settings=settings))


def test_an_encoder_decoder_is_refused_as_one(tmp_path: Path, settings: Settings) -> None:
    tiny_t5().save_pretrained(tmp_path / "t5")
    tiny_tokenizer().save_pretrained(tmp_path / "t5")
    with pytest.raises(UnsupportedModel, match="decoder"):
        load_model(str(tmp_path / "t5"), settings=settings)


def test_pickled_weights_are_not_run(folder: Path, settings: Settings, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(marker),))

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    _refusal(lambda: load_model(str(folder), settings=settings))
    assert not marker.exists()


# --- names


@pytest.mark.parametrize(
    "name",
    [
        "./nowhere",
        "/nowhere/at/all",
        "~/nowhere-at-all",
        "~no-such-user-here/model",
        "a/b/c",
        "missing.gguf",
        "folder/missing.gguf",
        "defualt",
        "",
        "x" * 5000,
    ],
    ids=lambda name: name[:30],
)
def test_a_name_that_cannot_be_a_model_is_refused_unasked(
    name: str, settings: Settings, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    _refusal(lambda: resolve(name, settings))


def test_a_slip_in_default_is_noticed(settings: Settings) -> None:
    assert "did you mean 'default'" in _refusal(lambda: resolve("defualt", settings))


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, settings: Settings) -> None:
    for name in ("notes.txt", "model.safetensors", "config.json"):
        (tmp_path / name).write_text("{}")
        assert name in _refusal(lambda name=name: resolve(str(tmp_path / name), settings))


def test_a_local_folder_goes_before_a_hub_id(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _save(tiny_model(), tmp_path / "org" / "model")
    assert resolve("org/model", settings).folder == "org/model"
    assert load_model("org/model", settings=settings).n_layers == N_LAYERS


@pytest.mark.parametrize("name", ["someone/some-model", "gpt2", "a b c!", "x/.."])
def test_offline_no_connection_is_opened(name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def refuse(_socket: socket.socket, address: object) -> None:
        tried.append(address)
        raise OSError(errno.ENETUNREACH, "no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert "STEERSMAN_OFFLINE" in _refusal(lambda: load_model(name, settings=settings))
    assert tried == []


def test_an_unreachable_hub_is_said_in_one_line_without_trying_on_and_on(tmp_path: Path) -> None:
    program = (
        "from steersman.errors import ModelError\n"
        "from steersman.models.load import load_model\n"
        "try:\n"
        "    load_model('someone/some-model-that-is-not-here')\n"
        "except ModelError as error:\n"
        "    print(error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "STEERSMAN_"))}
    with socket.create_server(("127.0.0.1", 0)) as hub:
        endpoint = f"http://127.0.0.1:{hub.getsockname()[1]}"
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "STEERSMAN_CACHE": str(tmp_path)}
        with subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as asking:
            calls = _hang_up(hub, asking, most=3)
            said, noise = asking.communicate()
    # Tries are counted, not seconds: each one more waits longer.
    assert calls <= 3, noise
    assert asking.returncode == 0, noise
    assert len(said.splitlines()) == 1
    assert "someone/some-model-that-is-not-here" in said
    assert "hub" in said
    assert noise == ""


def _hang_up(hub: socket.socket, asking: subprocess.Popen[str], most: int) -> int:
    """Take calls and end them at once, until the process that calls is done or has called more often than it may."""
    calls = 0
    hub.settimeout(0.1)
    while asking.poll() is None:
        with contextlib.suppress(TimeoutError):
            hub.accept()[0].close()
            calls += 1
        if calls > most:
            asking.kill()
            break
    return calls


# --- devices and number formats


@pytest.mark.parametrize(
    "device", ["banana", "cuda:99", "cuda:-1", "cpu:x", "xpu", "meta", "hpu", "privateuseone", "vulkan"]
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(device: str, settings: Settings) -> None:
    assert device in _refusal(lambda: load_model("./nowhere", device=device, settings=settings))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_refused() -> None:
    assert "cpu" in _refusal(lambda: choose_device("cuda"))


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_mps_without_mps_is_refused() -> None:
    assert "cpu" in _refusal(lambda: choose_device("mps"))


def test_a_device_is_chosen_where_none_is_named() -> None:
    assert choose_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


def test_a_number_format_is_chosen_where_none_is_named() -> None:
    assert choose_dtype(None, CPU) in {torch.bfloat16, torch.float32}
    assert choose_dtype(None, torch.device("mps")) == torch.float16
    for name in ("bfloat16", "float16", "float32"):
        assert choose_dtype(name, CPU) == getattr(torch, name)


@pytest.mark.parametrize("dtype", ["float64", "int8", "fp32", "float"])
def test_an_unknown_number_format_is_refused_with_the_known_ones(dtype: str, settings: Settings) -> None:
    message = _refusal(lambda: load_model("./nowhere", dtype=dtype, settings=settings))
    assert dtype in message
    assert "bfloat16" in message


# --- GGUF


@torch.no_grad()
def test_a_gguf_loads_and_is_unpacked_once(
    gguf_file: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first = load_model(str(gguf_file), settings=settings)
    assert (first.n_layers, first.d_model, first.name) == (2, D_MODEL, str(gguf_file))
    assert first.decode(first.encode("hello")) == "hello"
    assert len(first.encode("hello")) == 4
    unpacked = list((settings.cache / "unpacked").iterdir())
    assert len(unpacked) == 1
    asked: list[str | None] = []
    original = load._from_pretrained
    monkeypatch.setattr(
        load, "_from_pretrained", lambda source, *rest: asked.append(source.gguf) or original(source, *rest)
    )
    second = load_model(str(gguf_file), settings=settings)
    assert asked == [None]
    assert second.ref == first.ref
    ids = torch.tensor([[5, 70, 99]])
    assert torch.equal(second.hf(ids).logits, first.hf(ids).logits)
    # Only the CLI speaks.
    assert capfd.readouterr() == ("", "")


def test_number_formats_are_unpacked_apart_and_are_the_same_model(gguf_file: Path, settings: Settings) -> None:
    one, other = (load_model(str(gguf_file), dtype=dtype, settings=settings) for dtype in ("float32", "bfloat16"))
    assert (one.dtype, other.dtype) == (torch.float32, torch.bfloat16)
    assert one.ref.matches(other.ref)
    assert len(list((settings.cache / "unpacked").iterdir())) == 2


def test_the_same_file_elsewhere_is_not_unpacked_again(gguf_file: Path, settings: Settings, tmp_path: Path) -> None:
    copy = shutil.copy(gguf_file, tmp_path / "copy.gguf")
    one, other = load_model(str(gguf_file), settings=settings), load_model(str(copy), settings=settings)
    assert one.ref.matches(other.ref)
    assert len(list((settings.cache / "unpacked").iterdir())) == 1


@pytest.mark.parametrize("damage", ["truncated weights", "no marker", "bad marker", "no weights", "no config"])
def test_a_damaged_copy_is_unpacked_again(gguf_file: Path, settings: Settings, damage: str) -> None:
    expected = load_model(str(gguf_file), settings=settings).ref
    (unpacked,) = (settings.cache / "unpacked").iterdir()
    match damage:
        case "truncated weights":
            with (unpacked / "model.safetensors").open("r+b") as file:
                file.truncate(5000)
        case "no marker":
            (unpacked / "steersman.json").unlink()
        case "bad marker":
            (unpacked / "steersman.json").write_text("[]")
        case "no weights":
            (unpacked / "model.safetensors").unlink()
        case "no config":
            (unpacked / "config.json").unlink()
    assert load_model(str(gguf_file), settings=settings).ref == expected
    assert [path.name for path in (settings.cache / "unpacked").iterdir()] == [unpacked.name]


def test_every_truncation_is_refused_and_leaves_nothing(gguf_file: Path, settings: Settings, tmp_path: Path) -> None:
    data = gguf_file.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (0, 3, 4, 10, 23, 24, 100, 1000, 5000, 10_000, len(data) // 2, len(data) - 100, len(data) - 1):
        cut.write_bytes(data[:length])
        assert str(cut) in _refusal(lambda: load_model(str(cut), settings=settings))
    assert not settings.cache.exists() or not list((settings.cache / "unpacked").iterdir())


@pytest.mark.parametrize(
    "head",
    [
        b"GGML" + b"\0" * 40,
        b"\x80\x04" + b"\0" * 40,
        b"GGUF" + struct.pack("<IQQ", 1, 5, 5),
        b"GGUF" + struct.pack("<IQQ", 99, 5, 5),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 5),
    ],
    ids=["older format", "pickle", "version 1", "version 99", "no tensors"],
)
def test_what_is_no_gguf_is_refused_by_its_head(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(head)
    assert "model.gguf" in _refusal(lambda: check_gguf(tmp_path / "model.gguf"))


def test_absurd_counts_in_the_head_are_refused_quickly(gguf_file: Path, settings: Settings, tmp_path: Path) -> None:
    data, path = gguf_file.read_bytes(), tmp_path / "absurd.gguf"
    for counts in ((1 << 60, 5), (5, 1 << 60)):
        path.write_bytes(data[:8] + struct.pack("<QQ", *counts) + data[24:])
        _refusal(lambda: load_model(str(path), settings=settings))


@pytest.mark.parametrize("where", ["folder", "weights", "tokenizer"])
def test_a_full_disk_while_unpacking_leaves_nothing(
    gguf_file: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    def full(*_args: Any, **_kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    holder, name = {
        "folder": (tempfile, "mkdtemp"),
        "weights": (PreTrainedModel, "save_pretrained"),
        "tokenizer": (PreTrainedTokenizerBase, "save_pretrained"),
    }[where]
    monkeypatch.setattr(holder, name, full)
    with pytest.raises(StorageError, match="full"):
        load_model(str(gguf_file), settings=settings)
    monkeypatch.undo()
    assert list((settings.cache / "unpacked").iterdir()) == []
    assert load_model(str(gguf_file), settings=settings).n_layers == 2


def test_an_interrupt_while_unpacking_leaves_nothing(
    gguf_file: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerBase

    def interrupt(*_args: Any, **_kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_model(str(gguf_file), settings=settings)
    assert list((settings.cache / "unpacked").iterdir()) == []


def test_a_cache_that_is_a_file_is_a_storage_error(gguf_file: Path, settings: Settings) -> None:
    settings.cache.write_text("a file")
    with pytest.raises(StorageError):
        load_model(str(gguf_file), settings=settings)


def test_a_copy_that_another_process_finished_meanwhile_is_left_alone(
    gguf_file: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # That process may be reading it this moment.
    elsewhere = Settings(cache=tmp_path / "other", dtype="float32", offline=True)
    expected = load_model(str(gguf_file), settings=elsewhere).ref
    original, made = load._from_pretrained, []

    def slow(source: Any, *rest: Any) -> Any:
        found = original(source, *rest)
        if source.gguf is not None:
            shutil.copytree(tmp_path / "other", settings.cache)
            made.extend(path.stat().st_ino for path in (settings.cache / "unpacked").iterdir())
        return found

    monkeypatch.setattr(load, "_from_pretrained", slow)
    assert load_model(str(gguf_file), settings=settings).ref == expected
    assert [path.stat().st_ino for path in (settings.cache / "unpacked").iterdir()] == made


def test_a_copy_that_appears_at_the_last_moment_is_used(
    gguf_file: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Settings(cache=tmp_path / "other", dtype="float32", offline=True)
    expected = load_model(str(gguf_file), settings=elsewhere).ref
    (theirs,) = (tmp_path / "other" / "unpacked").iterdir()
    original = Path.rename

    def late(path: Path, target: Path) -> Path:
        if target.parent == settings.cache / "unpacked" and not target.exists():
            shutil.copytree(theirs, target)
        return original(path, target)

    monkeypatch.setattr(Path, "rename", late)
    assert load_model(str(gguf_file), settings=settings).ref == expected
    monkeypatch.undo()
    assert [path.name for path in (settings.cache / "unpacked").iterdir()] == [theirs.name]


# --- the bundled model


@pytest.mark.model
def test_the_bundled_model_loads_the_second_time_without_network(bundled: LanguageModel) -> None:
    from_env = Settings.from_env()
    again = load_model(settings=Settings(cache=from_env.cache, offline=True))
    assert again.name == "default"
    assert again.ref == bundled.ref


@pytest.mark.model
def test_a_truncated_copy_of_the_bundled_file_is_refused(
    bundled: LanguageModel, tmp_path: Path, settings: Settings
) -> None:
    source = resolve("default", Settings.from_env())
    assert source.gguf == Path(default_asset().files[0].path).name
    data = (Path(source.folder) / source.gguf).read_bytes()
    for share in (0.001, 0.9):
        (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
        assert "cut.gguf" in _refusal(lambda: load_model(str(tmp_path / "cut.gguf"), settings=settings))
    assert bundled.n_layers == 30
