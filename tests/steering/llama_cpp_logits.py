"""Logits of llama.cpp with and without a control vector. Runs in a Python that has llama_cpp; needs nothing of steersman.

Called as `python llama_cpp_logits.py JOB.json`. The job names the model, one sequence of token ids, the runs (a control
vector's file or none, and llama.cpp's own factor on it) and where to write logits `(runs, tokens, n_vocab)` as .npy.
Exit code 77, the reason on stderr: this llama_cpp cannot be asked.

The file is read by llama.cpp's own loader, `common_control_vector_load`, not by our idea of it. That is a C++ function:
its argument and result are laid out here by hand, which holds for libstdc++ on 64-bit machines, so those are checked.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import numpy as np

CANNOT = 77
LOADER = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"
KEEP: list[object] = []  # What C++ points to, and the callback of the log.


class Vector(ctypes.Structure):
    """A std::vector: begin, end, end of the storage."""

    _fields_ = (("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("capacity", ctypes.c_void_p))


class String(ctypes.Structure):
    """A std::string of libstdc++ whose text lies elsewhere."""

    _fields_ = (("text", ctypes.c_char_p), ("length", ctypes.c_size_t), ("capacity", ctypes.c_size_t * 2))


class LoadInfo(ctypes.Structure):
    """A common_control_vector_load_info."""

    _fields_ = (("strength", ctypes.c_float), ("fname", String))


class Data(ctypes.Structure):
    """A common_control_vector_data: floats of layer 1, layer 2 and so on."""

    _fields_ = (("n_embd", ctypes.c_int32), ("data", Vector))


def cannot(reason: str) -> None:
    """End with the reason."""
    sys.stderr.write(reason)
    sys.exit(CANNOT)


def loader(package: Path) -> ctypes._CFuncPtr:
    """llama.cpp's own reader of control vectors, from the library that ships beside llama_cpp."""
    places = [folder / "libllama-common.so" for folder in (package / "lib", package.parent / "lib")]
    found = [place for place in places if place.is_file()]
    if not found:
        cannot("this llama_cpp ships no libllama-common.so (0.3.36 does)")
    if ctypes.sizeof(ctypes.c_void_p) != 8 or b"__cxx11" not in found[0].read_bytes():
        cannot("libllama-common.so was not built with the 64-bit libstdc++ that this script knows")
    library = ctypes.CDLL(str(found[0]))
    if not hasattr(library, LOADER):
        cannot("libllama-common.so does not export common_control_vector_load")
    function = library[LOADER]
    function.argtypes, function.restype = [ctypes.POINTER(Vector)], Data
    return function


def load(function: ctypes._CFuncPtr, path: str, strength: float) -> Data:
    """Read a control vector as `--control-vector-scaled path:strength` does."""
    text = path.encode()
    info = LoadInfo(strength, String(text, len(text), (len(text), 0)))
    end = ctypes.addressof(info) + ctypes.sizeof(info)
    infos = Vector(ctypes.addressof(info), end, end)
    KEEP.extend((text, info, infos))
    data: Data = function(ctypes.byref(infos))
    if data.n_embd < 1:
        sys.exit(f"llama.cpp refused {path}")
    return data


def main(job: dict) -> None:
    """Run the job."""
    try:
        import llama_cpp
    except ImportError as error:
        cannot(f"llama_cpp cannot be imported: {error}")
    silence = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    KEEP.append(silence)
    llama_cpp.llama_log_set(silence, None)
    llama_cpp.llama_backend_init()
    read = loader(Path(llama_cpp.__file__).parent)
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(job["model"].encode(), settings)
    if not model:
        sys.exit(f"llama.cpp cannot load {job['model']}")
    runs = [logits(llama_cpp, read, model, job["tokens"], run) for run in job["runs"]]
    np.save(job["out"], np.stack(runs))


def logits(llama_cpp: object, read: ctypes._CFuncPtr, model: object, tokens: list[int], run: dict) -> np.ndarray:
    """Logits at every token, `(tokens, n_vocab)`, in a context of its own."""
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(64, len(tokens))
    settings.n_threads = settings.n_threads_batch = 1  # More would only spin where others compute.
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, settings)
    if run["vector"] is not None:
        data = load(read, run["vector"], run["strength"])
        floats = ctypes.cast(data.data.begin, ctypes.POINTER(ctypes.c_float))
        count = (data.data.end - data.data.begin) // ctypes.sizeof(ctypes.c_float)
        # From layer 1 to the last, as llama.cpp's programs do when no range is given.
        last = llama_cpp.llama_model_n_layer(model)
        if llama_cpp.llama_set_adapter_cvec(context, floats, count, data.n_embd, 1, last) != 0:
            sys.exit("llama.cpp did not accept the control vector for this model")
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
    if llama_cpp.llama_decode(context, batch) != 0:
        sys.exit("llama.cpp could not run the model")
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    pointer = llama_cpp.llama_get_logits(context)
    result = np.ctypeslib.as_array(pointer, shape=(len(tokens), n_vocab)).copy()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return result


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
