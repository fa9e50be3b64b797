"""Short contexts of facts and questions about them: what the real pair is judged on.

The words of a split (names and values) occur in no other split, not even as a plural; only the
sentences' own words are shared. `binding` contexts state the same relation of several people, so
that an answer must tell who is who.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

CANDIDATES = 8
FACTS = (4, 5, 6)
ASKED = 4
SPLITS = ("train", "unseen")

NAMES: Mapping[str, tuple[str, ...]] = {
    "train": tuple(
        "Anna Boris Clara David Elena Frank Grace Henry Irene James Karen Louis Maria Nathan Olga "
        "Peter Rosa Simon Teresa Victor Wendy Albert Brenda Carl Diana Edgar Fiona George Helen "
        "Ivan Julia Kevin Laura Martin Nora Oscar Paula Ralph Sarah Thomas".split()
    ),
    "unseen": tuple(
        "Alice Bruno Cecil Doris Emma Felix Gloria Hugo Ingrid Jonas Katie Leon Monica Norman "
        "Olivia Philip Ruth Steven Tina Walter".split()
    ),
}


@dataclass(frozen=True)
class Relation:
    """One kind of fact.

    Attributes:
        fact: a sentence with `{name}` and `{value}`.
        question: a question with `{name}`; the answer follows it.
        values: the values of each split.
        space: text between the question and its answer.
    """

    fact: str
    question: str
    values: Mapping[str, tuple[str, ...]]
    space: str = " "


def _relation(fact: str, question: str, train: str, unseen: str) -> Relation:
    return Relation(
        fact,
        f"Question: {question}\nAnswer: {fact.split(' {value}')[0]}",
        {"train": tuple(train.split()), "unseen": tuple(unseen.split())},
    )


RELATIONS: Mapping[str, Relation] = {
    "city": _relation(
        "{name} lives in {value}.",
        "Where does {name} live?",
        "Paris London Berlin Madrid Tokyo Moscow Dublin Chicago Boston Vienna Cairo Athens "
        "Mumbai Denver Seattle Toronto",
        "Rome Sydney Dallas Oslo Lisbon Prague Houston Warsaw Miami Beijing",
    ),
    "animal": _relation(
        "{name} owns a {value}.",
        "Which animal does {name} own?",
        "dog cat horse rabbit goat pig sheep parrot turtle snake duck lion monkey bear wolf fox",
        "cow tiger frog camel mouse deer lizard spider whale eagle",
    ),
    "job": _relation(
        "{name} works as a {value}.",
        "What does {name} work as?",
        "doctor teacher lawyer farmer painter driver nurse pilot singer writer baker soldier judge "
        "sailor barber dancer",
        "chef carpenter dentist plumber butcher tailor scientist waiter librarian guard",
    ),
    "food": _relation(
        "{name} likes to eat {value}.",
        "What does {name} like to eat?",
        "bread cheese rice soup pizza salad pasta fish chicken cake apples potatoes honey beans "
        "chocolate nuts",
        "bananas eggs mushrooms beef tomatoes onions carrots cookies pork grapes",
    ),
    "colour": _relation(
        "{name} wears a {value} coat.",
        "Which coat does {name} wear?",
        "red blue green black white yellow brown purple grey silver",
        "pink orange golden violet scarlet beige crimson turquoise",
    ),
    "tool": _relation(
        "{name} carries a {value}.",
        "What does {name} carry?",
        "knife book lamp rope camera bottle basket candle map sword ladder mirror umbrella phone "
        "hammer letter",
        "key bell flag drum shovel bucket pillow blanket guitar clock",
    ),
}


def _foreign(fact: str, question: str, values: str, cue: str, space: str) -> Relation:
    begun = fact.split("{value}")[0].rstrip()
    return Relation(fact, cue.format(question, begun), {"": tuple(values.split())}, space)


_GERMAN = "Frage: {}\nAntwort: {}"
_CHINESE = "问题：{}\n回答：{}"
FOREIGN: Mapping[str, tuple[tuple[str, ...], Mapping[str, Relation]]] = {
    "german": (
        (
            "Jürgen",
            "Heike",
            "Uwe",
            "Sabine",
            "Günter",
            "Anke",
            "Lothar",
            "Birgit",
            "Detlef",
            "Ulla",
        ),
        {
            "city": _foreign(
                "{name} wohnt in {value}.",
                "Wo wohnt {name}?",
                "Köln München Hamburg Wien Zürich Leipzig Bremen Nürnberg Rostock Dresden",
                _GERMAN,
                " ",
            ),
            "food": _foreign(
                "{name} isst gern {value}.",
                "Was isst {name} gern?",
                "Käse Brot Fisch Kuchen Nudeln Äpfel Suppe Honig Bohnen Zwiebeln",
                _GERMAN,
                " ",
            ),
            "job": _foreign(
                "{name} arbeitet als {value}.",
                "Als was arbeitet {name}?",
                "Koch Lehrer Arzt Bäcker Maler Richter Gärtner Pfarrer Schneider Soldat",
                _GERMAN,
                " ",
            ),
            "tool": _foreign(
                "{name} sammelt {value}.",
                "Was sammelt {name}?",
                "Uhren Bücher Münzen Steine Puppen Karten Lampen Schuhe Messer Bilder",
                _GERMAN,
                " ",
            ),
        },
    ),
    "chinese": (
        ("李明", "王芳", "张伟", "刘洋", "陈静", "杨帆", "赵磊", "黄丽", "周强", "吴敏"),
        {
            "city": _foreign(
                "{name}住在{value}。",
                "{name}住在哪里？",
                "北京 上海 巴黎 伦敦 东京 香港 罗马 纽约 广州 柏林",
                _CHINESE,
                "",
            ),
            "food": _foreign(
                "{name}喜欢吃{value}。",
                "{name}喜欢吃什么？",
                "苹果 面包 鸡蛋 牛肉 米饭 香蕉 豆腐 蛋糕 土豆 鱼",
                _CHINESE,
                "",
            ),
            "job": _foreign(
                "{name}的工作是{value}。",
                "{name}的工作是什么？",
                "医生 老师 律师 农民 司机 护士 厨师 记者 作家 警察",
                _CHINESE,
                "",
            ),
            "animal": _foreign(
                "{name}养了一只{value}。",
                "{name}养了什么？",
                "狗 猫 兔子 羊 鸟 猴子 老鼠 鸭子 鸡 乌龟",
                _CHINESE,
                "",
            ),
        },
    ),
}


@dataclass(frozen=True)
class Question:
    """One question with the words that may answer it; the first is right.

    Attributes:
        text: what is asked.
        candidates: the words.
        relation: what kind of fact it asks for.
        space: text between the question and its answer.
    """

    text: str
    candidates: tuple[str, ...]
    relation: str
    space: str = " "


@dataclass(frozen=True)
class Context:
    """A text and the questions about it."""

    text: str
    questions: tuple[Question, ...]


def make(split: str, count: int, seed: int, binding: bool = False) -> list[Context]:
    """Contexts of one split, the same for the same seed."""
    return [_context(split, Random(f"{split} {seed} {i} {binding}"), binding) for i in range(count)]


def foreign(language: str, count: int, seed: int) -> list[Context]:
    """Contexts in a language of no training text: four facts, and a question about each."""
    names, relations = FOREIGN[language]
    made = []
    for index in range(count):
        rng = Random(f"{language} {seed} {index}")
        kinds = rng.sample(sorted(relations), len(relations))
        told = [
            (name, kind, rng.choice(relations[kind].values[""]))
            for name, kind in zip(rng.sample(names, len(kinds)), kinds, strict=True)
        ]
        facts = [relations[k].fact.format(name=n, value=v) for n, k, v in told]
        joint = relations[kinds[0]].space
        asked = tuple(_asked(relations, "", told, one, rng) for one in told)
        made.append(Context(joint.join(facts), asked))
    return made


def _context(split: str, rng: Random, binding: bool) -> Context:
    count = rng.choice(FACTS)
    if binding:
        kinds = rng.sample(sorted(RELATIONS), 2) * 3
        people = [name for name in rng.sample(NAMES[split], 3) for _ in range(2)]
        facts = list(zip(people, kinds, strict=True))[:count]
    else:
        kinds = rng.sample(sorted(RELATIONS), count)
        facts = list(zip(rng.sample(NAMES[split], count), kinds, strict=True))
    used: dict[str, list[str]] = {}
    told = []
    for name, kind in facts:
        free = [v for v in RELATIONS[kind].values[split] if v not in used.get(kind, [])]
        value = rng.choice(free)
        used.setdefault(kind, []).append(value)
        told.append((name, kind, value))
    rng.shuffle(told)
    text = " ".join(RELATIONS[k].fact.format(name=n, value=v) for n, k, v in told)
    asked = rng.sample(told, ASKED)
    return Context(text, tuple(_asked(RELATIONS, split, told, one, rng) for one in asked))


def _asked(
    relations: Mapping[str, Relation],
    split: str,
    told: Sequence[tuple[str, str, str]],
    one: tuple[str, str, str],
    rng: Random,
) -> Question:
    name, kind, value = one
    relation = relations[kind]
    others = [v for _, k, v in told if k == kind and v != value]  # said of somebody else
    rest = [v for v in relation.values[split] if v != value and v not in others]
    wrong = others + rng.sample(rest, CANDIDATES - 1 - len(others))
    return Question(relation.question.format(name=name), (value, *wrong), kind, relation.space)


def words(split: str) -> set[str]:
    """Every word of a split, in lower case."""
    values = (value for relation in RELATIONS.values() for value in relation.values[split])
    return {word.lower() for word in (*NAMES[split], *values)}


IRREGULAR = {"knife": "knives", "mouse": "mice", "wolf": "wolves"}
"""Plurals of the words above that no rule of `forms` makes."""
_SINGULAR = {plural: word for word, plural in IRREGULAR.items()}


def forms(word: str) -> set[str]:
    """A word with its plurals and its singular, roughly: too many rather than too few."""
    stems = {word, word.removesuffix("s"), word.removesuffix("es"), _SINGULAR.get(word, "")}
    stems.add(IRREGULAR.get(word, ""))
    if word.endswith("ies"):
        stems.add(word[:-3] + "y")
    made = {stem + ending for stem in stems if stem for ending in ("", "s", "es")}
    return made | {stem[:-1] + "ies" for stem in stems if stem.endswith("y")}


def held_out() -> frozenset[str]:
    """Every form of every word that training must not see."""
    return frozenset(form for word in words("unseen") for form in forms(word))
