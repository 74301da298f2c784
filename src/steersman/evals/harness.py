"""Steersman as a model of lm-evaluation-harness (`pip install lm-eval`): its tasks, under a recipe. Knows nothing of the tasks.

From Python, `lm_eval.simple_evaluate(model=harness_model(engine, recipe, 2.0), tasks=[...])`; from the shell,
`python -m steersman.evals.harness --model steersman --model_args recipe=pirate.json,strength=2 --tasks arc_easy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steersman.engine.engine import Engine
from steersman.errors import ModelError, RequestError, did_you_mean
from steersman.evals.harness_reader import Reader
from steersman.models.load import load_model
from steersman.steering.recipe import Recipe
from steersman.steering.recipe_file import load_recipe


def harness_model(engine: Engine, recipe: Recipe | None = None, strength: float = 1.0) -> Any:
    """An `lm_eval.api.model.LM` that answers by the engine, steered by the recipe.

    Raises:
        ModelError: lm-evaluation-harness is not installed.
        RecipeMismatch: the recipe is for another model.
    """
    return harness_class()(Reader(engine, recipe, strength))


def harness_class() -> Any:
    """The class that the harness makes models of; a subclass of its `LM`, so it can only be derived once that is there.

    Raises:
        ModelError: lm-evaluation-harness is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError as error:
        raise ModelError(f"lm-evaluation-harness cannot be imported ({error}); pip install 'lm-eval>=0.4.9'") from error

    class SteersmanLM(LM):  # type: ignore[misc]
        """Answers the harness's requests by a `Reader`."""

        def __init__(self, reader: Reader) -> None:
            super().__init__()
            self.reader = reader

        @classmethod
        def create_from_arg_obj(cls, arg_dict: Mapping[str, Any], additional_config: Any = None) -> Any:
            """From `--model_args` and what else the command line says; batch sizes are the engine's business."""
            device = dict(additional_config or {}).get("device")
            return cls(reader_from(**{**({"device": device} if device else {}), **arg_dict}))

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> Any:
            """From `recipe=FILE,strength=2`."""
            from lm_eval.utils import simple_parse_args_string

            return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

        @property
        def tokenizer_name(self) -> str:
            """What the harness's cache of requests tells tokenizers apart by."""
            return f"steersman/{self.reader.model.name}".replace("/", "__")

        def chat_template(self, chat_template: bool | str = False) -> str:
            """The model's own template, as the harness records it."""
            return str(getattr(self.reader.model.tokenizer, "chat_template", None) or "") if chat_template else ""

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            """A chat as the text that the model reads."""
            return self.reader.model.render(chat_history, answer=add_generation_prompt)

        def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
            """See `Reader.loglikelihood`."""
            found = self.reader.loglikelihood([request.args for request in requests])
            self._tell("loglikelihood", requests, found)
            return found

        def loglikelihood_rolling(self, requests: Any) -> list[float]:
            """See `Reader.rolling`."""
            found = self.reader.rolling([request.args[0] for request in requests])
            self._tell("loglikelihood_rolling", requests, found)
            return found

        def generate_until(self, requests: Any) -> list[str]:
            """See `Reader.generate`."""
            found = self.reader.generate([request.args for request in requests])
            self._tell("generate_until", requests, found)
            return found

        def _tell(self, kind: str, requests: Any, answers: Sequence[Any]) -> None:
            """Hand each answer to the harness's cache."""
            for request, answer in zip(requests, answers, strict=True):
                self.cache_hook.add_partial(kind, request.args, answer)

    return SteersmanLM


def reader_from(
    recipe: str | None = None,
    strength: float = 1.0,
    model: str = "default",
    device: str | None = None,
    dtype: str | None = None,
    **unknown: Any,
) -> Reader:
    """A reader from the words of a command line.

    Raises:
        RequestError: an argument that there is not.
        ModelError, RecipeError: a model or recipe that cannot be loaded.
    """
    known = ("recipe", "strength", "model", "device", "dtype")
    for name in unknown:
        raise RequestError(f"unknown model argument {name!r}; there are {', '.join(known)}{did_you_mean(name, known)}")
    steering = load_recipe(Path(recipe)) if recipe else None
    return Reader(Engine(load_model(model, device=device, dtype=dtype)), steering, float(strength))


def register() -> None:
    """Make `--model steersman` known to the harness, in this process.

    Raises:
        ModelError: lm-evaluation-harness is not installed.
    """
    made = harness_class()
    import lm_eval.models  # noqa: F401 - its own models first, else it thinks that there is only ours
    from lm_eval.api.registry import MODEL_REGISTRY, register_model

    if "steersman" not in MODEL_REGISTRY:
        register_model("steersman")(made)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()
