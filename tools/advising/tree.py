"""The decision tree of the SFT lesson, Q1 to Q5, answered from evidence, and what follows from the answers.

The lesson asks one question after the other and lets rules of thumb decide. Where this repository has measured what a
rule guesses at, the measurement decides: the paired gain over few-shot prompting before the number of rows, the
calculated cost before the number of requests. None as an answer means that nothing here tells.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.shared.params import PARAMS
from tools.advising import cost, evidence
from tools.advising.evidence import Accuracy, Evaluated, Latency, Own, Speed, Trained, Validated

VALIDATE, EVALUATE = Path("metrics/validate.json"), Path("metrics/evaluate.json")
TRAINED, LATENCY = Path("metrics/timing/train.json"), Path("metrics/timing/latency.json")
MEASURE = f"run `{evidence.MEASURE}`"
Way = Literal["fine-tune", "few-shot", "prompting", "RAG"]
Branch = Literal[
    "knowledge",  # what is asked for changes: no model learns that
    "behaviour",  # Q1: no
    "worse",  # the tuned model is worse than prompting
    "examples",  # Q2: no
    "measured",  # Q2: no, yet the tuned model is better
    "cost",  # Q3, calculated
    "volume",  # Q3, by the rule of thumb
    "latency",  # Q4: yes
    "differentiation",  # Q5: yes
    "accuracy",  # the tuned model is better, and prompting is not shown to be good enough
    "enough",  # prompting is good enough
    "nothing",  # nothing known speaks for fine-tuning
]


@dataclass(frozen=True)
class Evidence:
    """A figure in words, and the file that it stands in."""

    text: str
    file: str


@dataclass(frozen=True)
class Answer:
    """`answer`: None is not known; `unknown`: what to fill in or run to know more."""

    id: str
    question: str
    answer: bool | None
    evidence: tuple[Evidence, ...]
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Advice:
    """`branch`: the branch of the tree that decided; `cautions`: what to know before acting on it."""

    recommendation: Way
    branch: Branch
    reasons: tuple[str, ...]
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """All that the advice rests on. `latency` is None until it has been measured."""

    own: Own
    validated: Validated
    evaluated: Evaluated
    trained: Trained
    latency: Latency | None

    @property
    def rival(self) -> Literal["zero_shot", "few_shot"]:
        """The prompting that a tuned model has to beat: the plain one where it is good enough, or clearly better."""
        plain, shown = self.evaluated.zero_shot, self.evaluated.few_shot
        better = plain.exact_match_low > shown.exact_match_high
        return "zero_shot" if better or plain.reaches(self.own.minimum_accuracy) else "few_shot"

    @property
    def prompted(self) -> Accuracy:
        return self.evaluated.zero_shot if self.rival == "zero_shot" else self.evaluated.few_shot

    @property
    def better(self) -> bool | None:
        """Whether the tuned model is better than the rival: by the paired gain, or by intervals that lie apart."""
        gain, tuned = self.evaluated.gain_over_few_shot, self.evaluated.tuned
        over = (gain.low, gain.high)
        if self.rival == "zero_shot":  # the paired gain is recorded over few_shot only
            other = self.prompted
            over = (tuned.exact_match_low - other.exact_match_high, tuned.exact_match_high - other.exact_match_low)
        return True if over[0] > 0 else False if over[1] < 0 else None

    @property
    def speeds(self) -> tuple[Speed, Speed] | None:
        """The rival's and the tuned model's."""
        if self.latency is None:
            return None
        systems = self.latency.systems
        return (systems.zero_shot if self.rival == "zero_shot" else systems.few_shot), systems.tuned

    @property
    def costs(self) -> cost.Comparison | None:
        return cost.compare(self.own, *self.speeds, self.trained.seconds) if self.speeds else None

    @property
    def dearer(self) -> bool | None:
        """Whether the tuned model costs more than the rival at the user's volume."""
        costs, requests = self.costs, self.own.requests_a_day
        if costs is None or requests is None:
            return None
        return costs.tuned_a_day(requests) > costs.prompted_a_day(requests)


def fill_in(*names: str) -> tuple[str, ...]:
    return tuple(f"fill in {PARAMS}: advise.{name}" for name in names)


def own_figure(name: str, value: object) -> Evidence:
    return Evidence(f"advise.{name} is {str(value).lower()}", str(PARAMS))


def changing(known: Known) -> Answer:
    """Q0, before the tree: a model learns how to answer, not what is the case today."""
    return own_answer("Q0", "Do answers depend on facts that change?", "knowledge_changes", known.own.knowledge_changes)


def own_answer(number: str, question: str, name: str, value: bool | None) -> Answer:
    """A question that only the user can answer."""
    found = () if value is None else (own_figure(name, value),)
    return Answer(number, question, value, found, fill_in(name) if value is None else ())


def consistent(known: Known) -> Answer:
    """Q1. No where a check of consistency fails, or the user says that the task still changes."""
    checks, changes = known.validated.checklist.get("consistent", {}), known.own.task_changes
    failed = known.validated.failed("consistent", "warning", "critical")
    holds = f"{', '.join(failed)} failed" if failed else "all hold"
    found = [Evidence(f"checks of consistency ({', '.join(sorted(checks))}): {holds}", str(VALIDATE))]
    if changes is not None:
        found.append(own_figure("task_changes", changes))
    none = () if checks else (f"{VALIDATE} has no checks of the group `consistent`; see expectations/",)
    return Answer(
        "Q1",
        "Is the behaviour consistent and well defined?",
        False if failed or changes else True if checks else None,
        tuple(found),
        (*none, *(fill_in("task_changes") if changes is None else ())),
    )


def examples(known: Known) -> Answer:
    """Q2. Rows count that are sound; none does while a check of the rows themselves fails beyond its limit."""
    checked, needed = known.validated, known.own.enough_examples
    critical = checked.all_failed("critical")
    tier = checked.checklist.get("size", {}).get("train_rows", {}).get("both")
    size = f"{checked.train.kept} sound training rows" + (f" ({tier.example})" if tier and tier.example else "")
    quality = f"critical checks that fail: {', '.join(critical) or 'none'}"
    return Answer(
        "Q2",
        f"Are there {needed} good examples or more?",
        checked.train.kept >= needed and not critical,
        (Evidence(size, str(VALIDATE)), Evidence(quality, str(VALIDATE))),
    )


def volume(known: Known) -> Answer:
    """Q3. The number of requests, and what they cost where the prices are known."""
    own, costs = known.own, known.costs
    asked = f"Are there {own.high_volume} requests a day or more?"
    if own.requests_a_day is None:
        return Answer("Q3", asked, None, (), fill_in("requests_a_day"))
    found = [own_figure("requests_a_day", f"{own.requests_a_day:g}")]
    if costs:
        prompted, tuned = costs.prompted_a_day(own.requests_a_day), costs.tuned_a_day(own.requests_a_day)
        found.append(Evidence(f"a day of it costs {prompted:.3g} prompted, {tuned:.3g} tuned", f"{LATENCY}, {PARAMS}"))
    return Answer("Q3", asked, own.requests_a_day >= own.high_volume, tuple(found))


def decides(prompting: bool | None, tuning: bool | None) -> bool | None:
    """Whether a target that both systems meet or miss speaks for the tuned one; None: it can't be told."""
    if prompting or tuning is False:
        return False
    return True if tuning and prompting is False else None


def latency(known: Known) -> Answer:
    """Q4. It matters where prompting misses the target and the tuned model meets it."""
    target, speeds = known.own.latency_target_ms, known.speeds
    unknown = [*(() if speeds else (MEASURE,)), *(() if target is not None else fill_in("latency_target_ms"))]
    found = [] if target is None else [own_figure("latency_target_ms", f"{target:g}")]
    matters = None
    if speeds and known.latency:
        prompted, tuned = speeds
        text = f"95 of 100 answers within {prompted} from {known.rival}, {tuned} tuned, on {known.latency.device.name}"
        prefix = f"{prompted.prefix_ms:.0f} ms more from {known.rival} where no server keeps its prefix"
        found += [Evidence(text, str(LATENCY)), Evidence(prefix, str(LATENCY))]
    if speeds and target is not None:
        prompting, tuning = (speed.meets(target) for speed in speeds)
        matters = decides(prompting, tuning)
        if matters is None:
            unknown.append("too near the target to tell; raise latency.requests and " + MEASURE)
        elif prompting is False:
            found.append(Evidence(f"the tuned model {'meets it' if tuning else 'misses it as well'}", str(LATENCY)))
    return Answer("Q4", "Does latency decide?", matters, tuple(found), tuple(unknown))


def differentiation(known: Known) -> Answer:
    return own_answer("Q5", "Is the behaviour your own, worth owning?", "differentiation", known.own.differentiation)


def questions(known: Known) -> tuple[Answer, ...]:
    return tuple(ask(known) for ask in (changing, consistent, examples, volume, latency, differentiation))


def pays(known: Known, many: bool | None) -> Iterator[tuple[Branch, str]]:
    """The branch and the reason where the volume speaks for fine-tuning: calculated, or by the rule of thumb."""
    if known.dearer is None and many:
        yield "volume", "so many requests a day are likely to pay for it, though the prices are not known"
    if known.dearer is False:
        yield "cost", "at this volume it costs no more than prompting"


def reasons(known: Known, answers: tuple[Answer, ...]) -> list[tuple[Branch, str]]:
    """Branch and reason for all that speaks for fine-tuning, in the order of the tree."""
    said = {answer.id: answer.answer for answer in answers}
    found = list(pays(known, said["Q3"]))
    if said["Q4"]:
        found.append(("latency", "it meets the latency target, and prompting does not"))
    if said["Q5"]:
        found.append(("differentiation", "the behaviour is worth owning"))
    if known.better and not known.prompted.reaches(known.own.minimum_accuracy):
        found.append(("accuracy", f"it is more often right than {known.rival}, beyond chance"))
    return found


def decide(known: Known, answers: tuple[Answer, ...]) -> Advice:
    branch, way, why = walk(known, answers)
    return Advice(way, branch, tuple(why), tuple(cautions(known, way)))


def walk(known: Known, answers: tuple[Answer, ...]) -> tuple[Branch, Way, list[str]]:
    """Down the tree to the first branch that decides: the branch, where it leads, and why."""
    prompt: Way = "prompting" if known.rival == "zero_shot" else "few-shot"
    said, found = {answer.id: answer.answer for answer in answers}, reasons(known, answers)
    if said["Q0"]:
        return "knowledge", "RAG", ["answers depend on facts that change, which a model does not learn by fine-tuning"]
    if said["Q1"] is False:
        return "behaviour", "prompting", ["settle the behaviour first: a prompt is changed in a minute"]
    if known.better is False:
        return "worse", prompt, [f"the tuned model is less often right than {known.rival}, beyond chance"]
    if said["Q2"] is False:
        if "accuracy" not in dict(found) or known.validated.all_failed("critical"):
            return "examples", prompt, ["there are too few good examples; collect more"]
        return "measured", "fine-tune", [f"with few examples it is more often right than {known.rival}, beyond chance"]
    if found:
        return found[0][0], "fine-tune", [reason for _, reason in found]
    if known.prompted.reaches(known.own.minimum_accuracy):
        return "enough", prompt, ["it is accurate enough, and nothing else speaks for fine-tuning"]
    return "nothing", prompt, ["nothing that is known speaks for fine-tuning"]


def cautions(known: Known, way: Way) -> Iterator[str]:
    """What to know before acting on the advice."""
    evaluated, minimum, measured = known.evaluated, known.own.minimum_accuracy, known.latency
    if minimum is not None and not evaluated.tuned.reaches(minimum) and way == "fine-tune":
        yield f"the tuned model is not shown to reach advise.minimum_accuracy = {minimum:g}; more rows, a larger model"
    if way == "fine-tune" and known.better is None:
        yield f"the tuned model is not shown to be more often right than {known.rival}"
    if way == "fine-tune":
        yield "prompting was measured with this base model; a larger one may do better with a prompt alone"
    if way == "fine-tune" and known.dearer:
        yield "at this volume a day of it costs more than prompting"
    if measured and measured.computed_from != evaluated.computed_from:
        yield f"{LATENCY} was measured with another adapter or other test rows than {EVALUATE}; {MEASURE}"
    if known.costs and known.own.preparation_cost is None:
        yield "the break-even leaves out what it costs to write the rows; " + fill_in("preparation_cost")[0]
    warned = known.validated.all_failed("warning")
    if warned:
        yield f"{VALIDATE} warns about {', '.join(warned)}"
