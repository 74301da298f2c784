"""Ways to steer, and the controls that they must beat: each fits one behaviour. Knows nothing of how they are measured.

Every recipe is handed on at unit strength, one mean residual norm long, so that the same strengths mean the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from steersman.auto.contrast_set import system_prompt
from steersman.auto.examples import written_examples
from steersman.auto.facts import Behaviour, ContrastSet
from steersman.auto.optimise.gradient import Gradient
from steersman.auto.prompts import Prompts
from steersman.auto.prove import random_control
from steersman.auto.retrieve import RetrievalSettings, retrieve
from steersman.auto.task import Task
from steersman.engine.likelihood import AnswerItem, answer_logprobs
from steersman.errors import DataError, RecipeError
from steersman.evals.context import Context, is_plain_text
from steersman.evals.facts import Fitted
from steersman.judges.local import QuickJudge
from steersman.models.language_model import chat
from steersman.models.residuals import profile_texts
from steersman.steering.edits import Add
from steersman.steering.methods import METHODS as FITS
from steersman.steering.methods import optimised, sae_ts, topic_alignment
from steersman.steering.methods.effect_map_file import load_effect_map
from steersman.steering.recipe import Recipe

_TRIED = 8
"""Features of each source that are tried one by one."""
_TRIED_AT = 0.15
"""At this strength, in mean residual norms."""
_TOPIC_SHARE = 0.5
"""A latent speaks for a topic when it fires on as many reference texts as this share of the topic's own."""


class Method(Protocol):
    """A way to steer, or a control."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def fit(self, context: Context) -> Fitted:
        """A recipe at unit strength, or a system prompt, or neither (the plain model).

        Raises:
            SteersmanError: it cannot be fitted on this; the evaluation reports a gap.
        """


@dataclass(frozen=True, slots=True)
class Pairs:
    """A method that fits contrast pairs, at one layer."""

    name: str

    def fit(self, context: Context) -> Fitted:
        """As `steering.methods` has it, on all examples."""
        engine, pairs = context.engine, context.behaviour.pairs
        recipe = FITS[self.name](engine.model, pairs, profile=engine.profile, layers=[context.layer], name=self.name)
        own = max(edit.strength for edit in recipe.edits)
        return Fitted(name=self.name, recipe=unit(recipe), note=f"layer {context.layer}, {own:.2f} long as fitted")


@dataclass(frozen=True, slots=True)
class Optimised:
    """One dense vector, trained by preference between the two answers of each example."""

    name: str = "optimised"

    def fit(self, context: Context) -> Fitted:
        """As `steering.methods.optimised` has it."""
        engine = context.engine
        recipe = optimised.fit(
            engine.model,
            context.behaviour.pairs,
            profile=engine.profile,
            layers=[context.layer],
            name=self.name,
            training=optimised.Training(seed=context.seed),
        )
        own = max(edit.strength for edit in recipe.edits)
        return Fitted(name=self.name, recipe=unit(recipe), note=f"layer {context.layer}, {own:.2f} long as trained")


@dataclass(frozen=True, slots=True)
class BestFeature:
    """The decoder row of a single SAE feature: the one that makes the examples likeliest."""

    name: str = "sae"

    def fit(self, context: Context) -> Fitted:
        """Try the features that tell the examples apart best, each at 0.15 mean residual norms."""
        task = context.task()
        return _best_of(self.name, context, lambda feature: task.recipe({feature: 1.0}, 1.0, method="sae"))


@dataclass(frozen=True, slots=True)
class Targeted:
    """SAE-TS: the vector that moves a single feature and little else, as a measured effect map knows it."""

    name: str = "sae-ts"

    def fit(self, context: Context) -> Fitted:
        """Try the same features as `sae` does, each by its targeted vector.

        Raises:
            DataError: the SAE has no effect map.
            SaeError: there is no SAE, or the map is of another one.
        """
        task = context.task()
        if context.effects is None or not context.effects.is_file():
            raise DataError(
                "sae-ts needs an effect map, and the SAE has none; make one: steersman effects measure, then fit, "
                "and name it with --effects"
            )
        stored = load_effect_map(context.effects, task.index.facts.sae)
        found = _best_of(self.name, context, lambda feature: sae_ts.fit(stored, {feature: 1.0}, name=self.name))
        r_squared = stored.facts.r_squared.mean
        trust = "not tested" if r_squared is None else f"R² {r_squared:.2f} on unseen vectors"
        return replace(found, note=f"{found.note}; effect map: {trust}")


@dataclass(frozen=True, slots=True)
class Topic:
    """Topic alignment: every latent of the SAE scored by how near the texts it fires on are to the examples."""

    name: str = "topic"

    def fit(self, context: Context) -> Fitted:
        """The decoder rows of the latents with the highest scores, summed up (`clamp`, the error kept).

        The reference is the plain texts, shipped prose, the tuning prompts and the examples themselves: latents that fire on
        the topic alone have no score without those. Which edit and how many texts was chosen on tasks of our own (docs/log.md).
        """
        task, model = context.task(), context.engine.model
        items = context.behaviour.items
        positives = [item.positive for item in items]
        reference = [*(item.negative for item in items), *profile_texts(), *context.prompts, *positives]
        topic = topic_alignment.score_topic(model, task.sae, context.encoder, positives, reference)
        least = max(topic_alignment.LEAST_PIECES, round(_TOPIC_SHARE * len(positives)))
        ref = task.index.facts.sae
        recipe = topic_alignment.fit(
            topic, task.sae, model=model.ref, sae_ref=ref, name=self.name, method="clamp", least=least
        )
        raised = topic.top(least=least)
        labels = task.labels(raised)
        told = ", ".join(f"{latent} ({labels.get(latent, 'no label')})" for latent in raised)
        note = f"{len(reference)} reference texts; raised of {topic.fired} scored latents: {told}"
        return Fitted(name=self.name, recipe=unit(recipe), note=note)


@dataclass(frozen=True, slots=True)
class Auto:
    """Auto-steering's default: candidate features by gradient, contrast and search, weighed by gradient."""

    name: str = "auto"
    writes: bool = True
    """Where the examples are texts that answer nothing, answers are written from the description, as `autosteer` does."""

    def fit(self, context: Context) -> Fitted:
        """Up to eight features, trained on the training examples, stopped by the validation ones."""
        task = context.task()
        task = replace(task, contrast=self._examples(context, task))
        tuned = Gradient().tune(task, retrieve(task, context.encoder, RetrievalSettings()))
        recipe = replace(task.recipe(tuned.weights, 1.0, method=f"autosteer/{tuned.method}"), name=self.name)
        note = f"{len(tuned.weights)} features; examples: {task.contrast.source}"
        return Fitted(name=self.name, recipe=unit(recipe), note=note)

    def _examples(self, context: Context, task: Task) -> ContrastSet:
        if not (self.writes and is_plain_text(context.behaviour)):
            return context.contrast
        n = max(1, len(context.prompts) // 4)
        prompts = Prompts(train=context.prompts[:-n], validation=context.prompts[-n:], test=())
        try:
            return written_examples(
                context.engine, task.behaviour, prompts, QuickJudge(context.engine), task.report, None
            )
        except DataError:  # The model does not show it when told to; the texts are better than nothing.
            return context.contrast


@dataclass(frozen=True, slots=True)
class Prompted:
    """The behaviour asked for in a system prompt."""

    name: str = "prompt"

    def fit(self, context: Context) -> Fitted:
        """As auto-steering asks for it."""
        system = system_prompt(Behaviour(description=context.behaviour.description))
        return Fitted(name=self.name, system=system, strengths=(1.0,), control=True, note=system)


@dataclass(frozen=True, slots=True)
class Plain:
    """The model as it is."""

    name: str = "plain"

    def fit(self, context: Context) -> Fitted:
        """Nothing."""
        return Fitted(name=self.name, strengths=(1.0,), control=True, note="the model as it is")


@dataclass(frozen=True, slots=True)
class RandomVector:
    """A random vector, at every strength as long as those of the methods."""

    name: str = "random"

    def fit(self, context: Context) -> Fitted:
        """Drawn by the seed."""
        like, _ = reference(context, self.name)
        recipe = replace(random_control(like, context.seed), name=self.name, method="random")
        return Fitted(name=self.name, recipe=unit(recipe), control=True, note=f"seed {context.seed}")


@dataclass(frozen=True, slots=True)
class WrongSign:
    """The first fitted recipe, turned round."""

    name: str = "wrong-sign"

    def fit(self, context: Context) -> Fitted:
        """Minus the recipe."""
        recipe, of = reference(context, self.name)
        return Fitted(name=self.name, recipe=replace(-recipe, name=self.name), control=True, note=f"minus {of}")


def unit(recipe: Recipe) -> Recipe:
    """The recipe scaled so that its longest `add` is one mean residual norm long; recipes without one stay as they are.

    Raises:
        DataError: it adds vectors in raw units, whose length says nothing of the model.
    """
    added = [edit for edit in recipe.edits if isinstance(edit, Add)]
    if any(edit.unit != "residual_norm" for edit in added):
        raise DataError(f"recipe {recipe.name!r} adds raw vectors; state their strength in mean residual norms")
    longest = max((abs(edit.strength) for edit in added), default=1.0)
    return recipe if longest == 1.0 else recipe * (1 / longest)


def reference(context: Context, name: str) -> tuple[Recipe, str]:
    """The first recipe that was fitted and adds a vector, and whose it is.

    Raises:
        DataError: none was.
    """
    for fitted in context.fitted:
        if fitted.recipe is not None and any(isinstance(edit, Add) for edit in fitted.recipe.edits):
            return fitted.recipe, fitted.name
    raise DataError(f"the control {name!r} needs a method with a vector, and none was fitted")


def likelihood_gains(context: Context, recipes: Sequence[Recipe], strength: float) -> list[float]:
    """For each recipe by how many nats a token the examples are likelier than the plain texts, steered."""
    sides = [(item.prompt, item.positive, item.negative) for item in context.contrast.train]
    items = [
        AnswerItem(prompt=chat(prompt), answer=text, recipe=recipe, strength=strength)
        for recipe in recipes
        for prompt, *texts in sides
        for text in texts
    ]
    means = [float(found.mean()) for found in answer_logprobs(context.engine, items)]
    n = 2 * len(sides)
    parts = [means[start : start + n] for start in range(0, len(means), n)]
    return [(sum(part[::2]) - sum(part[1::2])) / len(sides) for part in parts]


def _best_of(name: str, context: Context, recipe_of: Callable[[int], Recipe]) -> Fitted:
    """The feature whose vector makes the examples likeliest: mean log-probability a token, less that of the plain texts."""
    settings = RetrievalSettings(gradient=_TRIED, contrast=_TRIED, search=0)
    found = [each for each in retrieve(context.task(), context.encoder, settings) if each.score > 0][: 2 * _TRIED]
    recipes, tried = [], []
    for candidate in found:
        try:
            recipes.append(unit(recipe_of(candidate.id)))
            tried.append(candidate)
        except RecipeError:
            continue  # Nothing is known of that feature: it is no candidate.
    if not tried:
        raise DataError("no feature of the SAE tells the examples from the plain texts")
    gains = likelihood_gains(context, recipes, _TRIED_AT)
    best = max(range(len(tried)), key=lambda place: gains[place])
    label = tried[best].label or "no label"
    gain = f"log-probability a token of examples less that of plain texts, steered by it: {gains[best]:+.3f}"
    note = f"feature {tried[best].id} ({label}), best of {len(tried)} at {_TRIED_AT:g}: {gain}"
    return Fitted(name=name, recipe=replace(recipes[best], name=name), note=note)
