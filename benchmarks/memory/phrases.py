"""Facts and the many ways to ask about them: what the memory is fitted on and judged by.

Names, values and held-out phrasings of the test occur in nothing that is fitted or chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Asking:
    """One kind of fact; `{n}` is the name of whom it is about.

    Attributes:
        statement: what is told, without the value that follows it.
        question: the question that is stored beside the statement.
        seen: phrasings that a basis may be fitted on.
        held_out: phrasings that only the test uses, five.
        free: free wording, far from the others; the test alone uses it.
        values: single words that the fact may say.
    """

    statement: str
    question: str
    seen: tuple[str, ...]
    held_out: tuple[str, ...]
    free: str
    values: tuple[str, ...]


def _relation(lines: str, values: str) -> Asking:
    statement, question, *others = (line.strip() for line in lines.strip().splitlines())
    assert len(others) == 9, lines
    return Asking(
        statement,
        question,
        tuple(others[:3]),
        tuple(others[3:8]),
        others[8],
        tuple(values.split()),
    )


RELATIONS: Mapping[str, Asking] = {
    "city": _relation(
        """{n} lives in
        Where does {n} live?
        In which city does {n} live?
        What is the home of {n}?
        Which place does {n} live in?
        {n} lives where?
        Which town is {n} living in?
        In what city is the home of {n}?
        Can you tell me where {n} lives?
        Where is {n} living now?
        If I sent {n} a letter, to which city would it go?""",
        "Rome Paris London Berlin Madrid Tokyo Moscow Dublin Chicago Boston Vienna Cairo Athens "
        "Denver Seattle Toronto Sydney Dallas Oslo Lisbon Prague Houston Miami Beijing",
    ),
    "animal": _relation(
        """{n} owns a
        Which animal does {n} own?
        What animal does {n} have?
        What is the pet of {n}?
        Which pet does {n} keep?
        {n} owns which animal?
        What kind of animal belongs to {n}?
        Which creature is owned by {n}?
        Can you tell me which animal {n} owns?
        What pet has {n} got?
        Whom does {n} feed and take to the vet?""",
        "dog cat horse rabbit goat pig sheep turtle snake duck lion monkey bear wolf fox cow tiger "
        "frog mouse deer spider whale eagle",
    ),
    "job": _relation(
        """{n} works as a
        What does {n} work as?
        What is the job of {n}?
        Which profession does {n} have?
        What does {n} do for a living?
        {n} works as what?
        Which job does {n} do?
        What is the occupation of {n}?
        Can you tell me what {n} works as?
        As what is {n} employed?
        How does {n} earn money?""",
        "doctor teacher lawyer farmer painter driver nurse pilot singer writer baker soldier judge "
        "sailor dancer chef tailor scientist waiter guard",
    ),
    "food": _relation(
        """{n} likes to eat
        What does {n} like to eat?
        Which food does {n} like?
        What is the favourite food of {n}?
        What does {n} love to eat?
        {n} likes to eat what?
        Which dish does {n} enjoy most?
        What would {n} most like to eat?
        Can you tell me what {n} likes to eat?
        What food makes {n} happy?
        What should I cook if {n} comes for dinner?""",
        "bread cheese rice soup pizza salad pasta fish chicken cake apples potatoes honey beans "
        "chocolate nuts bananas eggs beef tomatoes onions carrots cookies grapes",
    ),
    "colour": _relation(
        """The coat of {n} is
        What colour is the coat of {n}?
        Which colour has the coat of {n}?
        What is the colour of the coat of {n}?
        What colour of coat does {n} wear?
        The coat of {n} has which colour?
        In which colour is the coat that {n} wears?
        Which colour does the coat of {n} have?
        Can you tell me the colour of the coat of {n}?
        What colour does {n} wear as a coat?
        How would I spot {n} in a crowd in winter?""",
        "red blue green black white yellow brown purple grey silver pink orange golden violet",
    ),
    "tool": _relation(
        """{n} carries a
        What does {n} carry?
        Which thing does {n} carry?
        What is {n} carrying?
        What does {n} have with them?
        {n} carries what?
        Which object does {n} carry around?
        What thing is carried by {n}?
        Can you tell me what {n} carries?
        What is it that {n} carries?
        What would fall out if {n} dropped the bag?""",
        "knife book lamp rope camera bottle basket candle map sword ladder mirror umbrella phone "
        "hammer letter key bell flag drum bucket pillow blanket guitar clock",
    ),
    "language": _relation(
        """{n} speaks
        Which language does {n} speak?
        What language does {n} speak?
        What is the language of {n}?
        Which tongue does {n} speak?
        {n} speaks which language?
        In which language does {n} talk?
        What language is spoken by {n}?
        Can you tell me which language {n} speaks?
        Which language would {n} use?
        Into what should we translate the contract for {n}?""",
        "French German Spanish Russian Italian Chinese Japanese Arabic Greek Turkish Polish Dutch "
        "Hindi Korean Latin Swedish Portuguese Hebrew",
    ),
    "sport": _relation(
        """{n} plays
        Which sport does {n} play?
        What sport does {n} play?
        Which game does {n} play?
        What is the sport of {n}?
        {n} plays which sport?
        Which sport is played by {n}?
        What game is it that {n} plays?
        Can you tell me which sport {n} plays?
        At which sport is {n} good?
        What does {n} train for every weekend?""",
        "football tennis golf chess hockey baseball basketball cricket rugby soccer volleyball "
        "poker",
    ),
    "vehicle": _relation(
        """{n} drives a
        Which vehicle does {n} drive?
        What does {n} drive?
        What vehicle does {n} have?
        What is the vehicle of {n}?
        {n} drives which vehicle?
        What kind of vehicle does {n} use?
        Which vehicle is driven by {n}?
        Can you tell me what {n} drives?
        In what does {n} travel?
        What stands in front of the house when {n} is at home?""",
        "truck bus taxi train tractor bicycle motorcycle van boat ship jeep tank car wagon",
    ),
    "friend": _relation(
        """The best friend of {n} is
        Who is the best friend of {n}?
        Who is the closest friend of {n}?
        What is the name of the best friend of {n}?
        Which friend does {n} like best?
        The best friend of {n} is who?
        Whom does {n} call the best friend?
        Who is to {n} the dearest friend?
        Can you tell me who the best friend of {n} is?
        What is the best friend of {n} called?
        With whom does {n} share every secret?""",
        "Anna Peter Mary John Paul Emma Jack Lucy Tom Kate Mark Jane Adam Eve Luke Rose Max Sam "
        "Ben Alice",
    ),
    "subject": _relation(
        """{n} studies
        What does {n} study?
        Which subject does {n} study?
        What is the subject of {n}?
        What is {n} studying?
        {n} studies what?
        Which subject is studied by {n}?
        What field does {n} study?
        Can you tell me what {n} studies?
        Which course of study did {n} choose?
        What are the books about that {n} reads at college?""",
        "history physics chemistry biology music law medicine geography art economics philosophy "
        "mathematics engineering psychology",
    ),
    "country": _relation(
        """{n} was born in
        In which country was {n} born?
        Where was {n} born?
        What is the birth country of {n}?
        Which country was {n} born in?
        {n} was born in which country?
        From what country does {n} come by birth?
        What country is {n} a native of?
        Can you tell me in which country {n} was born?
        In what land was {n} born?
        What does the passport of {n} say as origin?""",
        "France Germany Spain Russia Italy China Japan Egypt Greece Turkey Poland India Canada "
        "Brazil Mexico Sweden Norway Ireland Kenya Cuba Peru Chile Iran Israel",
    ),
    "drink": _relation(
        """{n} drinks
        What does {n} drink?
        Which drink does {n} like?
        What is the favourite drink of {n}?
        What does {n} like to drink?
        {n} drinks what?
        Which drink does {n} choose?
        What is drunk by {n}?
        Can you tell me what {n} drinks?
        What would {n} order to drink?
        What should the glass of {n} be filled with?""",
        "coffee tea milk water wine beer juice lemonade whiskey cocoa soda rum",
    ),
    "fear": _relation(
        """{n} is afraid of
        What is {n} afraid of?
        What does {n} fear?
        What scares {n}?
        What is the fear of {n}?
        {n} is afraid of what?
        Of what is {n} scared?
        What frightens {n}?
        Can you tell me what {n} is afraid of?
        Which thing does {n} fear most?
        What makes {n} run away?""",
        "fire ghosts thunder dogs snakes spiders darkness heights bees water storms rats crowds "
        "clowns",
    ),
    "month": _relation(
        """The birthday of {n} is in
        In which month is the birthday of {n}?
        When is the birthday of {n}?
        What is the birth month of {n}?
        In which month was {n} born?
        The birthday of {n} is in which month?
        During which month does {n} have a birthday?
        In what month does {n} celebrate the birthday?
        Can you tell me in which month the birthday of {n} is?
        Which month has the birthday of {n}?
        When do we need a cake and candles for {n}?""",
        "January February March April May June July August September October November December",
    ),
    "instrument": _relation(
        """The instrument of {n} is the
        Which instrument does {n} play?
        What is the instrument of {n}?
        What instrument can {n} play?
        Which instrument has {n} learnt?
        The instrument of {n} is which?
        On which instrument does {n} play?
        What musical instrument does {n} use?
        Can you tell me which instrument {n} plays?
        Which instrument belongs to {n}?
        What does {n} practise for the orchestra?""",
        "piano violin guitar drum flute trumpet cello harp organ saxophone clarinet bass",
    ),
    "room": _relation(
        """{n} sleeps in the
        Where does {n} sleep?
        In which room does {n} sleep?
        What is the sleeping place of {n}?
        Which room does {n} sleep in?
        {n} sleeps where?
        In what place does {n} sleep?
        Which room is the bed of {n} in?
        Can you tell me where {n} sleeps?
        What place does {n} use to sleep?
        Where would I find {n} at midnight?""",
        "kitchen garden attic garage cellar barn library office hall tower basement tent cave",
    ),
    "gift": _relation(
        """{n} wants a new
        What does {n} want?
        Which new thing does {n} want?
        What would {n} like to get?
        What is the wish of {n}?
        {n} wants what?
        Which gift does {n} wish for?
        What new thing is wanted by {n}?
        Can you tell me what {n} wants?
        What does {n} wish to have?
        What present should I buy for {n}?""",
        "watch ring hat shirt computer chair table desk bed sofa kite ball doll robot house coat "
        "bag pen",
    ),
}

MANY_TOKENS: tuple[str, ...] = (
    *("Mount Kenya", "Saint Helena", "Cape Verde", "Fort Lauderdale", "Monte Carlo"),
    *("dark chocolate", "smoked salmon", "lemon pie", "goat cheese", "pumpkin soup"),
    *("a rusty bicycle", "a wooden spoon", "a silver ring", "an old clock", "a broken lamp"),
    *("room 214", "gate 37", "platform 9", "locker 58", "box 1062"),
    *("half past seven", "on Sundays", "every second Monday", "at the old mill", "by the river"),
    *("Maria Lopez", "Ivan Petrov", "Dr Okafor", "Aunt Beatrix", "Captain Nolan"),
)
"""Values of several tokens."""

_SYLLABLES = "ba be bo da de do fa fi ga go ka ki ko la li lo ma mi mo na ne no pa pe ra ri ro sa se so ta te to va ve vo za zo".split()  # noqa: E501
_ENDINGS = "n l r s x m d th nd rk".split()


def invented(count: int, seed: int, taken: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Names that no text has taught a model, such as `Kavorn`."""
    rng = Random(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        parts = "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((1, 2, 2))))
        name = (parts + rng.choice(_ENDINGS)).capitalize()
        if len(name) > 3 and name not in taken:
            made[name] = None
    return tuple(made)


NAMES: Mapping[str, tuple[str, ...]] = {
    "fit": tuple(
        "Anna Boris Clara David Elena Frank Grace Henry Irene James Karen Louis Nathan Olga Rosa "
        "Simon Teresa Victor Wendy Albert Brenda Carl Diana Edgar Fiona George Helen Ivan Julia "
        "Kevin Laura Martin Nora Oscar Paula Ralph Sarah Thomas Ursula Vera Walter Xavier Yvonne "
        "Amir Bilal Chen Dmitri Esra Farid Gita Hassan Ines Jorge Kofi Lars Mei Nils Omar Priya "
        "Quentin".split()
    ),
    "validation": tuple(
        "Alice Bruno Cecil Doris Felix Gloria Hugo Ingrid Jonas Katie Leon Monica Norman Olivia "
        "Philip Ruth Steven Tina Zoe Malik".split()
    ),
    "test": tuple(
        "Agnes Bernard Charlotte Dennis Edith Florence Gerald Hannah Isaac Joyce Keith Lydia "
        "Mabel Neil Opal Patrick Quincy Roland Stella Trevor Ulrich Violet Wesley Yolanda Zachary "
        "Abigail Byron Cynthia Derek Eunice".split()
    ),
}
"""Names that people have; each split gets as many invented ones beside them."""


def names(split: str) -> tuple[str, ...]:
    """The names of a split; no two splits share one."""
    own = NAMES[split]
    order = tuple(NAMES)
    taken = frozenset(
        name
        for other in order[: order.index(split)]
        for name in invented(len(NAMES[other]) * 2, order.index(other))
    )
    return own + invented(len(own) * 2, order.index(split), taken)[: len(own)]


@dataclass(frozen=True)
class ToldFact:
    """One fact of a test: a name, a relation and what is said."""

    name: str
    relation: str
    value: str

    @property
    def statement(self) -> str:
        """The statement without its value."""
        return RELATIONS[self.relation].statement.format(n=self.name)

    @property
    def question(self) -> str:
        """The question that is stored beside it."""
        return RELATIONS[self.relation].question.format(n=self.name)

    def held_out(self) -> tuple[str, ...]:
        """Five phrasings that nothing was fitted on."""
        return tuple(text.format(n=self.name) for text in RELATIONS[self.relation].held_out)

    @property
    def free(self) -> str:
        """Free wording."""
        return RELATIONS[self.relation].free.format(n=self.name)


def told(count: int, split: str, seed: int, values: tuple[str, ...] = ()) -> list[ToldFact]:
    """Facts about different (name, relation) pairs, at random.

    Args:
        count: how many.
        split: whose names.
        seed: of the choice.
        values: what they say in place of their relation's own words.
    """
    rng = Random(seed)
    pairs = [(name, relation) for name in names(split) for relation in RELATIONS]
    chosen = rng.sample(pairs, count)
    return [ToldFact(n, r, rng.choice(values or RELATIONS[r].values)) for n, r in chosen]


def near_misses(one: ToldFact) -> dict[str, str]:
    """Questions that sound like a fact's but ask for something that was not told."""
    relation = RELATIONS[one.relation]
    return {
        "sister": relation.question.format(n=f"the sister of {one.name}"),
        "boss": relation.held_out[0].format(n=f"the boss of {one.name}"),
        "age": f"How old is {one.name}?",
        "height": f"How tall is {one.name}?",
    }


RELATIVES = ("brother", "teacher", "neighbour", "mother", "cousin")
"""Of near misses that a basis may be fitted on; the test's are others."""

PROSE: tuple[str, ...] = (
    "The committee met on Tuesday to discuss the new budget for the coming year.",
    "Rain fell steadily over the hills while the river rose towards the old bridge.",
    "To install the software, download the archive and run the setup program.",
    "The experiment showed that plants grow faster when they receive more light.",
    "She closed the door quietly and walked down the stairs into the street.",
    "Interest rates were left unchanged after a long debate among the members.",
    "Mix the flour with the butter, add the sugar and leave it in a cold place.",
    "The museum has a large collection of paintings from the sixteenth century.",
    "Scientists have found a new species of frog in the forests of the island.",
    "The match ended in a draw after both teams had scored in the last minutes.",
    "Please return the form by the end of the month to the address below.",
    "Most of the energy used in the home is spent on heating and hot water.",
    "The play opens in a small village where everybody knows each other.",
    "In 1912 the company built its first factory on the outskirts of the town.",
    "What is the capital of Australia?",
    "How many legs does a spider have?",
    "Who wrote the play Hamlet?",
    "What is one plus one?",
    "Which planet is closest to the sun?",
    "Why is the sky blue?",
)
"""Texts that have nothing to do with what was told."""
