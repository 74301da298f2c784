"""Measure the word scores: texts written to be one of 18 words, all on the same four topics, against plain texts and one another.

Of each word, the area under the ROC curve against plain texts and against texts of the other words, and the share of texts on the
right side of 5 with constants that were fitted without that word. Neither part of the score has learnt from these texts; the two
constants have, so the contrast sets that ship and prompted answers of the model are measured too. Rank agreement is Spearman's,
with the likelihood judge's score of the behaviour, over the prompted answers of the behaviours that have a word. The last line is
one JSON object.

    python bench/descriptors.py [--fit] [--no-prompted] [--tokens 40]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from judges import PROMPTS, auc, load_behaviours, write
from steersman.auto.logistic import fit_logistic
from steersman.engine.engine import Engine
from steersman.judges.descriptor import CENTRE, WIDTH, DescriptorJudge
from steersman.judges.facts import Answered
from steersman.judges.likelihood import behaviour_scores
from steersman.models.load import load_model
from steersman.models.sentence_encoder import load_encoder
from steersman.steering.pairs import load_named

SETS = {"pirate": "like a pirate", "formal": "formal", "cheerful": "cheerful", "for-children": "childlike"}
"""Contrast sets that ship, and their words."""
BEHAVIOURS = {
    "child-friendly": "childlike",
    "pirate": "like a pirate",
    "formal": "formal",
    "slang": "slangy",
    "angry": "angry",
    "sad": "sad",
    "enthusiastic": "enthusiastic",
    "sceptical": "sceptical",
    "poetic": "poetic",
    "fairy-tale": "like a fairy tale",
    "french": "French",
    "legalese": "legalistic",
    "shakespeare": "Shakespearean",
    "religious": "religious",
    "romantic": "romantic",
    "conspiracy": "conspiratorial",
    "humorous": "funny",
}
"""Behaviours that ship, and their words; the others have none."""
TEXTS: Mapping[str, Sequence[str]] = {
    "cheerful": (
        "What a glorious morning! The sun is out, the birds are singing, and I could hug the whole street!",
        "Hooray, the bus is here! I love this ride, there is always something fun to see on the way!",
        "This soup is pure sunshine in a bowl! Grab a spoon, you are going to love every drop!",
        "Yay, the new phone works! I have already sent everyone a silly picture, and it made their day!",
    ),
    "sad": (
        "It rained again this morning. I lay there and listened, and could not think of a reason to get up.",
        "I took the bus alone. The seat beside me, where she always sat, stayed empty the whole way.",
        "I made soup for two, as I used to. It went cold in the other plate, and I cried a little.",
        "The phone never rings any more. I still keep his number in it, though nobody will answer.",
    ),
    "angry": (
        "Rain again! I am sick and tired of this miserable weather, and of everybody who says it is nice!",
        "The bus was late AGAIN. What do those idiots do all day? I have had enough, this is a disgrace!",
        "You call this soup? It is cold, it is salty, and I will not pay one cent for this garbage!",
        "This damned phone! It broke after a week, and they dare to tell me that it is my own fault!",
    ),
    "formal": (
        "It is hereby noted that precipitation is anticipated this morning; attendees are requested to dress accordingly.",
        "Passengers are respectfully reminded that the departure of the bus shall take place at precisely nine o'clock.",
        "We have the honour of presenting a soup of seasonal vegetables, which will be served at your convenience.",
        "Kindly be advised that the use of telephones is not permitted for the duration of the proceedings.",
    ),
    "casual": (
        "Hey, kinda wet out there today, so yeah, maybe grab a jacket or whatever.",
        "Gonna hop on the bus in a sec, see ya in like ten minutes, ok?",
        "So I threw some veggies in a pot, and honestly the soup turned out pretty good lol.",
        "Dude, my phone's totally dead, gimme a shout on Sam's if you wanna hang out.",
    ),
    "poetic": (
        "The dawn spills silver on the sleeping roofs, and rain, like whispered prayer, bends down the rose.",
        "The bus, a lantern gliding through the dusk, bears homeward all the dreams the day has bruised.",
        "O golden broth, where autumn's memory swims, the garden's breath still rises from your face.",
        "A small cold moon of glass lies in my palm, and through it drift the voices of the far.",
    ),
    "scary": (
        "The rain stopped at dawn, and then I saw them: wet footprints on the floor, leading to my bed.",
        "The bus was empty. Then, from the last row, something began to breathe, and it knew my name.",
        "She stirred the soup and smiled. Something pale rolled over in the pot and looked back at me.",
        "The phone rang at midnight. It was my own voice, screaming, and the line had been cut for years.",
    ),
    "romantic": (
        "I woke to the rain and to you, my darling, and wished the morning would never let us go.",
        "On the bus your hand found mine, and my heart beat so loudly that I was sure you could hear it.",
        "I made you soup, my love, because I want to warm you every evening for the rest of our lives.",
        "I keep your message on my phone, and each night I read it and kiss the words before I sleep.",
    ),
    "religious": (
        "Blessed be this morning, for the Lord sends rain upon the fields, and His mercy has no end.",
        "As I sat on the bus I prayed for every soul on board, that God may guide them on their way.",
        "We bow our heads and thank our heavenly Father for this soup, and for the hands that made it. Amen.",
        "Put the phone aside and open the Scripture, for there the Holy Spirit is calling you.",
    ),
    "funny": (
        "It rained so hard that my umbrella handed in its notice and my shoes applied for a fishing licence.",
        "The bus driver said exact change only, so I told him I had changed exactly three times this morning.",
        "My soup is a secret recipe: even I have no idea what is in it, and the dog has hired a lawyer.",
        "My phone is so old that when I ask for directions, it unfolds a map and starts to argue with my wife.",
    ),
    "sceptical": (
        "They say it will rain this morning. Do they? On what evidence? I will believe it when I am wet.",
        "The bus is said to be on time. I doubt that very much; has anybody actually checked these claims?",
        "So this soup is supposed to cure a cold. Really? Where is the study, and who has paid for it?",
        "A battery that lasts a week? I am not convinced. It sounds like an advertisement, not like a fact.",
    ),
    "technical": (
        "A cold front at 850 hPa is forcing ascent; expect 4 mm/h of stratiform precipitation until 09:00 UTC.",
        "The bus is driven by a 240 kW permanent-magnet motor with regenerative braking on a 600 V DC circuit.",
        "Heat the stock to 95 °C; collagen hydrolyses to gelatin above 70 °C, which raises the viscosity.",
        "The handset's baseband negotiates carrier aggregation on bands 3 and 7 with 256-QAM modulation.",
    ),
    "childlike": (
        "Look, Mommy, the sky is crying! Can I wear my froggy boots and jump in the big, big puddle?",
        "The bus goes vroom vroom, and I want to sit right at the front, next to the nice driver man!",
        "My soup has little letters in it, and I found an A and a B, and then I ate them all up!",
        "I talked to Grandma on the phone, and I showed her my teddy, but she couldn't see him, silly phone!",
    ),
    "polite": (
        "Good morning! Would you be so kind as to share your umbrella, if it is not too much trouble? Thank you so much.",
        "Excuse me, please, may I sit here? Thank you very much, that is very kind of you.",
        "Would you care for a little more soup? Please do not hesitate to tell me if it needs anything.",
        "I am terribly sorry to disturb you; might I please borrow your phone for a moment? I would be most grateful.",
    ),
    "boastful": (
        "Nobody reads the weather like me. I called this rain days ago, and I am, as always, absolutely right.",
        "I know every bus in this city better than the drivers do; frankly, they should be asking me for advice.",
        "My soup is the best in the world, everybody says so. Great chefs have begged me for the recipe.",
        "I set up this phone in ten seconds flat. I am simply a genius with such things, the greatest you will meet.",
    ),
    "mysterious": (
        "Nobody knows why it always rains on this one day, and those who asked have never spoken of it since.",
        "A stranger left a sealed letter on the bus. It bore my name, and a date that has not come yet.",
        "The recipe has one ingredient that is never written down. Some say it grows only behind the locked door.",
        "The phone showed a number that does not exist. A voice said three words, which I must not repeat.",
    ),
    "like a pirate": (
        "Arr, the heavens be leakin' again, mateys! Batten down the hatches and fetch me rum!",
        "Ahoy! Climb aboard this here bus, ye scurvy dogs, and we'll sail her down to the harbour!",
        "Shiver me timbers, that be a fine soup! Pour me another bowl, or ye'll walk the plank!",
        "Avast! Me talkin' box has run aground, and there be no wind in her battery, arr!",
    ),
    "bureaucratic": (
        "Pursuant to section 4(b), the weather report must be submitted in triplicate on form R-12 before nine.",
        "Applications for a bus pass are processed within thirty working days, subject to verification of eligibility.",
        "The soup has been classified under category C and is issued solely upon presentation of a valid voucher.",
        "Your request for a telephone has been forwarded to the competent department and assigned a reference number.",
    ),
}
"""Four a word, on the same four things: the morning's weather, a bus, a soup, a telephone."""
PLAIN = (
    "It is raining this morning. The rain should stop around noon, and the afternoon will be dry.",
    "The bus leaves at nine and takes about twenty minutes to the station.",
    "The soup is made of carrots, onions and potatoes. It takes half an hour to cook.",
    "The phone has a large screen and a battery that lasts for two days.",
    "There are some clouds in the west, and the wind comes from the sea.",
    "The number 12 bus stops in front of the library and at the market.",
    "You can eat the soup with bread, or keep it in the fridge for three days.",
    "To turn the phone on, hold the button on the side for two seconds.",
)


def main() -> None:
    """Score all texts for all words, and print what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fit", action="store_true", help="print the constants that the written texts ask for")
    parser.add_argument("--no-prompted", action="store_true", help="leave out prompted answers, which take the longest")
    parser.add_argument("--tokens", type=int, default=40, help="length of prompted answers")
    parser.add_argument(
        "--ask", choices=("system", "twice"), default="twice", help="how prompted answers are asked for"
    )
    options = parser.parse_args()
    engine = Engine(load_model())
    judge, began = DescriptorJudge(engine, load_encoder()), time.perf_counter()
    summary: dict[str, float | int | str] = {
        "bench": "descriptors",
        **written(judge, options.fit),
        **contrast_sets(judge),
    }
    if not options.no_prompted:
        summary |= prompted(judge, options)
    summary |= {"seconds": time.perf_counter() - began, "threads": torch.get_num_threads()}
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in summary.items()}
    print(json.dumps(rounded | {"torch": torch.__version__, "machine": platform.machine()}))


def written(judge: DescriptorJudge, fit: bool) -> dict[str, float | int]:
    """The texts above: areas by part of the score, and the side of 5 with constants fitted on the other words."""
    texts = [text for written_so in TEXTS.values() for text in written_so] + list(PLAIN)
    found = judge.score(texts, list(TEXTS))
    parts = {
        "likelihood": torch.tensor([[each.likelihood for each in row] for row in found], dtype=torch.float64),
        "meaning": torch.tensor([[each.meaning for each in row] for row in found], dtype=torch.float64),
    }
    parts["both"] = parts["likelihood"] + parts["meaning"]
    # Which word each text was written for; the plain ones stand behind.
    word_of = [number for number, written_so in enumerate(TEXTS.values()) for _ in written_so] + [-1] * len(PLAIN)
    owners = torch.tensor(word_of)
    rows: dict[str, dict[str, float]] = {}
    for at, word in enumerate(TEXTS):
        own, plain = owners == at, owners == -1
        row = rows[word] = {}
        for name, values in parts.items():
            column = values[:, at]
            row[f"{name}, plain"] = auc(column[own].tolist(), column[plain].tolist())
            row[f"{name}, others"] = auc(column[own].tolist(), column[~own & ~plain].tolist())
        centre, _ = boundary(parts["both"], owners, [number for number in range(len(TEXTS)) if number != at])
        right = torch.where(own, parts["both"][:, at] > centre, parts["both"][:, at] < centre).double()
        row["right side"] = float(right[own].mean() + right[plain].mean() / 2 + right[~own & ~plain].mean() / 2) / 2
    means = report(rows)
    if fit:
        centre, width = boundary(parts["both"], owners, range(len(TEXTS)))
        print(f"CENTRE, WIDTH = {centre:.3f}, {width:.3f} (in use: {CENTRE}, {WIDTH})")
    return {"words": len(TEXTS), **{f"written {name}": value for name, value in means.items()}}


def boundary(values: Tensor, owners: Tensor, words: Sequence[int]) -> tuple[float, float]:
    """Centre and width of a logistic regression over some words: own texts weigh as much as plain and other ones together.

    Args:
        values: sum of both parts, (texts, words).
        owners: number of the word that each text was written for; -1: plain.
        words: numbers of the words to learn from.
    """
    plain, own, other = [], [], []
    for at in words:
        column = values[:, at]
        own.append(column[owners == at])
        plain.append(column[owners == -1])
        other.append(column[(owners != at) & (owners != -1)])
    high, few, many = torch.cat(own), torch.cat(plain), torch.cat(other)
    # Repeated to about equal numbers, as the regression weighs the sides alone.
    few = few.repeat(max(1, round(len(many) / len(few))))
    x = torch.cat([high, few, many])
    y = torch.arange(len(x)) < len(high)
    cost = (len(few) + len(many)) / len(high)
    found = fit_logistic(x[:, None], y, positive_cost=cost, ridge=1e-6)
    slope = float(found.weights[0])
    return -found.bias / slope, 1 / slope


def contrast_sets(judge: DescriptorJudge) -> dict[str, float]:
    """Texts with the behaviour against plain answers, and against those of the other sets: nothing was fitted on them."""
    items: list[Answered] = []
    sides: list[tuple[str, bool]] = []
    for name in SETS:
        for pair in load_named(name)[::3]:
            for shown, chat in ((True, pair.positive), (False, pair.negative)):
                assert not isinstance(chat, str)
                items.append(Answered(str(chat[0]["content"]), str(chat[-1]["content"])))
                sides.append((name, shown))
    found = judge.score(items, list(SETS.values()))
    rows: dict[str, dict[str, float]] = {}
    for at, name in enumerate(SETS):
        column = [row[at].score for row in found]
        own, plain = (
            [value for value, side in zip(column, sides, strict=True) if side == (name, is_own)]
            for is_own in (True, False)
        )
        others = [value for value, (of, shown) in zip(column, sides, strict=True) if shown and of != name]
        rows[name] = {"plain": auc(own, plain), "others": auc(own, others)}
        rows[name]["right side"] = (fmean(value > 5 for value in own) + fmean(value < 5 for value in plain)) / 2
    return {f"contrast sets {name}": value for name, value in report(rows).items()}


def prompted(judge: DescriptorJudge, options: argparse.Namespace) -> dict[str, float]:
    """Answers of the model told to behave, against plain ones and those of other behaviours, and beside the likelihood judge."""
    described = {name: text for name, text in load_behaviours().items() if name in BEHAVIOURS}
    answers = write(judge.engine, described, PROMPTS, options)
    names = list(described)
    kinds: list[str | None] = [None, *names]
    flat = [
        (kind, Answered(prompt, text)) for kind in kinds for prompt, text in zip(PROMPTS, answers[kind], strict=True)
    ]
    flat = [(kind, item) for kind, item in flat if item.answer.strip()]
    items = [item for _, item in flat]
    found = judge.score(items, [BEHAVIOURS[name] for name in names])
    rows: dict[str, dict[str, float]] = {}
    for at, name in enumerate(names):
        column = [row[at].score for row in found]
        sides: dict[str | None, list[float]] = {}
        for value, (kind, _) in zip(column, flat, strict=True):
            sides.setdefault(kind, []).append(value)
        own, plain = sides.pop(name), sides.pop(None)
        others = [value for values in sides.values() for value in values]
        rows[name] = {"plain": auc(own, plain), "others": auc(own, others)}
        rows[name]["rank agreement"] = spearman(column, behaviour_scores(judge.engine, described[name], items))
    return {f"prompted {name}": value for name, value in report(rows).items()}


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank."""
    ranks = torch.stack([ranked(one), ranked(other)])
    return float(torch.corrcoef(ranks)[0, 1])


def ranked(values: Sequence[float]) -> Tensor:
    column = torch.tensor(values, dtype=torch.float64)
    return ((column[:, None] > column).double() + (column[:, None] == column).double() / 2).sum(1)


def report(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """One line a row, the means last; returns the means."""
    columns = list(next(iter(rows.values())))
    means = {column: fmean(row[column] for row in rows.values()) for column in columns}
    print(f"{'':<20}" + "".join(f"{column:>20}" for column in columns))
    for name, row in {**rows, "mean": means}.items():
        print(f"{name:<20}" + "".join(f"{row[column]:>20.3f}" for column in columns))
    return means


if __name__ == "__main__":
    main()
