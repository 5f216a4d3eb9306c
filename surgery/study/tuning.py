"""The mixtures of debiased concepts, tuned by drawing and judging; all concepts of an edit together.

Every round makes the whole edit with the mixtures so far, draws the same prompts with the same seeds, and
takes from what the judge sees the next mixture of each concept. Counts are stored phrase by phrase, so that a
killed run goes on where it was.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from surgery.checkpoint import Checkpoint
from surgery.errors import JudgeError, raise_all
from surgery.evaluate import Sampling, Wanted, group_faults
from surgery.execute.earlier import keys_of
from surgery.judge import Judge
from surgery.methods import Group, method
from surgery.methods.emcid.debias import asked_as, groups_of, untuned, with_mixtures
from surgery.methods.emcid.tuning import Round, arrived, best, next_weights, pictures_needed
from surgery.patch import Patch, Term, applied, make_patch
from surgery.progress import bar
from surgery.recipe import Edit, Emcid, Recipe
from surgery.record import JSON, Finding
from surgery.store import Store
from surgery.study.rounds import Counter, traits_of
from surgery.study.weights import weights_names
from surgery.study.words import Words

_log = logging.getLogger(__name__)

_SEED: Final = 1_000_003  # rounds see other noise than the measurement
_SAME: Final = 1e-4  # mixtures that differ by less draw the same pictures
_MOST_TIMES: Final = 4  # as many pictures as planned, where the judge leaves many undecided


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """A recipe whose mixtures are known; what each round drew, and what a person should know."""

    recipe: Recipe
    record: tuple[JSON, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Course:
    """One edit's rounds so far: of each source, and which sources are done."""

    goals: Mapping[str, tuple[Group, ...]]
    weights: dict[str, tuple[float, ...]] = field(default_factory=dict)
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    among: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)
    """The mixtures of all with which each source was drawn last."""
    drawn: dict[str, int] = field(default_factory=dict)
    """The pictures of each source's last round, those that the judge left undecided too."""

    @property
    def left(self) -> list[str]:
        return [source for source in self.goals if source not in self.settled | self.stuck]

    @property
    def moved(self) -> list[str]:
        """Settled sources that were drawn before others found their mixtures: these moved them, too."""
        return [
            source for source in self.goals if source in self.settled and self.among[source] != self.weights
        ]

    def saw(self, source: str, seen: Round) -> None:
        """Note a round; what the same mixture drew among other mixtures of the others no longer holds."""
        self.among[source] = dict(self.weights)
        history = self.rounds.setdefault(source, [])
        history[:] = [one for one in history if not _same(one.weights, seen.weights)]
        history.append(seen)

    def goal(self, source: str) -> tuple[float, ...]:
        return tuple(group.share for group in self.goals[source])


def tune_recipe(
    recipe: Recipe,
    base: Checkpoint,
    words: Words,
    models: Any,
    judge: Judge,
    store: Store,
    *,
    batch: int | None = None,
) -> Tuned:
    """The recipe with the mixture of every debiased concept filled in that pictures are to find.

    A concept is done when every share is within the tolerance and its interval narrow enough; it then keeps
    its mixture. When all are, they are drawn once more together, and those that the others' mixtures moved
    away go on. One that is not done after the last round, or can go no further, keeps its best mixture and is
    named.

    Args:
        recipe: What to do; as it is where no mixture is to be tuned.
        base: The unedited checkpoint.
        words: Its templates.
        models: Its pipeline; weights are put in for the time of a round and taken out again.
        judge: Tells the groups.
        store: Where offsets and counts are kept.
        batch: Pictures drawn at a time, at most.

    Raises:
        JudgeError: when the judge cannot tell the groups; all faults at once.
    """
    edits, records, findings = [], [], []
    for number, edit in enumerate(recipe.edits):
        entry = edit.emcid
        goals = untuned(entry) if entry is not None and entry.debias.tuning == "pictures" else {}
        if entry is None or not goals:
            edits.append(edit)
            continue
        tuning = _Tuning(
            recipe=recipe, entry=entry, base=base, models=models, judge=judge, store=store, batch=batch
        )
        course, notes, samples = tuning.run(_Course(goals=goals), words)
        edits.append(Edit(emcid=with_mixtures(entry, course.weights)))
        records.append(_record(number, course, samples))
        findings += notes
    tuned = recipe.model_copy(update={"edits": tuple(edits)})
    return Tuned(recipe=tuned, record=tuple(records), findings=tuple(findings))


def tuned_entries(recipe: Recipe) -> list[Emcid]:
    """The entries whose mixtures are found by pictures, unless they are known."""
    entries = [edit.emcid for edit in recipe.edits if edit.emcid is not None]
    return [entry for entry in entries if entry.debias.tuning == "pictures"]


def check_groups(recipe: Recipe, judge: Judge) -> None:
    """Refuse target shares over attributes that the judge cannot decide.

    Raises:
        JudgeError: all faults at once.
    """
    faults = [
        f"{concept.source}: {fault}"
        for edit in recipe.edits
        if (entry := edit.emcid) is not None
        for concept in entry.concepts
        if concept.shares is not None
        for fault in group_faults(_wanted(groups_of(concept, entry)), judge.labels)
    ]
    raise_all(JudgeError, faults)


def _wanted(groups: tuple[Group, ...]) -> tuple[Wanted, ...]:
    return tuple(Wanted(traits=traits_of(group), share=group.share) for group in groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tuning:
    recipe: Recipe
    entry: Emcid
    base: Checkpoint
    models: Any
    judge: Judge
    store: Store
    batch: int | None

    def run(self, course: _Course, words: Words) -> tuple[_Course, list[Finding], int]:
        """The finished course, what was noticed, and the pictures per prompt of the last round."""
        knobs = self.entry.debias
        templates = words.templates(knobs.templates)
        needed = pictures_needed(knobs.tolerance, knobs.interval)
        planned = math.ceil(max(needed, knobs.pictures) / len(templates))
        findings = self._raised(course, needed)
        samples = planned
        for number in range(knobs.rounds):
            self._move(course)
            sources = course.left or course.moved
            if not sources:
                break
            self._draw(course, sources, self._sampling(templates, samples), number)
            samples = self._enough(course, needed, samples, planned)
        course.settled -= set(course.moved)  # the last round moved them, and none was left to look again
        for source in course.left:
            course.weights[source] = best(course.rounds[source], course.goal(source)).weights
        return course, [*findings, *self._unreached(course)], samples

    def _raised(self, course: _Course, needed: int) -> list[Finding]:
        knobs = self.entry.debias
        if knobs.pictures >= needed:
            return []
        message = (
            f"{knobs.pictures} pictures cannot show a share to within {knobs.tolerance:g} with an interval "
            f"of ±{knobs.interval:g}; {needed} are drawn of each concept."
        )
        _log.info("debias: %s", message)
        return [Finding(kind="more-pictures", subject=", ".join(course.goals), message=message)]

    def _move(self, course: _Course) -> None:
        """The next mixture of each source; one that has been drawn already ends its way."""
        reach = self.entry.debias.reach
        for source in course.left:
            history = course.rounds.setdefault(source, [])
            weights = next_weights(course.goal(source), history, reach)
            if any(_same(weights, seen.weights) for seen in history):
                weights = best(history, course.goal(source)).weights
                course.stuck.add(source)
            course.weights[source] = weights

    def _draw(self, course: _Course, sources: list[str], sampling: Sampling, number: int) -> None:
        knobs = self.entry.debias
        patch = self._patch(course)
        name = weights_names(self.models, patch)[1]
        phrases = {asked_as(source, self.entry): source for source in sources}
        wanted = {phrase: _wanted(course.goals[source]) for phrase, source in phrases.items()}
        with (
            bar(len(phrases), f"round {number + 1}", "phrase") as shown,
            applied(self.models, patch) as models,
        ):
            counter = Counter(
                models=models, weights=name, sampling=sampling, judge=self.judge, store=self.store
            )
            found = counter.counts(wanted, shown)
        for phrase, (counts, others) in found.items():
            source = phrases[phrase]
            seen = Round(weights=course.weights[source], counts=counts, others=others)
            course.saw(source, seen)
            course.drawn[source] = sampling.samples * len(sampling.templates)
            if arrived(seen, course.goal(source), knobs.tolerance, knobs.interval):
                course.settled.add(source)
            else:
                course.settled.discard(source)
        off = [rounds[-1].off(course.goal(source)) for source, rounds in course.rounds.items()]
        mean = sum(off) / len(off)
        _log.info("round %d: off by %.3f; %d of %d done", number + 1, mean, len(course.settled), len(off))

    def _patch(self, course: _Course) -> Patch:
        entry = with_mixtures(self.entry, course.weights)
        outcome = method("emcid").run(
            entry, self.recipe, self.base, self.models, self.store, keys_of(self.recipe, self.base)
        )
        return make_patch([Term(delta=outcome.delta, strength=1.0, source="emcid")], self.base)

    def _sampling(self, templates: tuple[str, ...], samples: int) -> Sampling:
        knobs = self.entry.debias
        guidance = self.recipe.sample.guidance if knobs.guidance is None else knobs.guidance
        sampling = Sampling(
            templates=templates,
            samples=samples,
            seed=self.recipe.seed + _SEED,
            steps=knobs.steps,
            guidance=guidance,
        )
        return sampling if self.batch is None else replace(sampling, batch=self.batch)

    def _enough(self, course: _Course, needed: int, samples: int, planned: int) -> int:
        """More pictures per prompt where so many were undecided that no interval can be narrow enough."""
        decided = min((course.rounds[source][-1].total for source in course.left), default=needed)
        if decided >= needed or samples >= _MOST_TIMES * planned:
            return samples
        more = min(math.ceil(samples * needed / max(1, decided)), _MOST_TIMES * planned)
        _log.info(
            "debias: %d decided pictures of %d needed; %d per prompt from now on", decided, needed, more
        )
        return more

    def _unreached(self, course: _Course) -> list[Finding]:
        """What each source that is not done shows, and why."""
        found = []
        for source in course.goals:
            if source in course.settled:
                continue
            seen = best(course.rounds[source], course.goal(source))
            shares = ", ".join(
                f"{100 * share:.0f} % {group.title}"
                for share, group in zip(seen.shares, course.goals[source], strict=True)
            )
            why = "its weights are as far out as they may be"
            if source not in course.stuck:
                why = f"{len(course.rounds[source])} rounds were not enough"
            drawn, decided = course.drawn[source], course.rounds[source][-1].total
            if decided < drawn / 2:
                why += f", and the judge left {drawn - decided} of the last {drawn} pictures undecided"
            message = (
                f"the target shares were not reached ({shares} of {seen.total} pictures): {why}. "
                "Allow more rounds, a larger debias.reach or tolerance, or ask with other phrases."
            )
            found.append(Finding(kind="not-balanced", subject=source, message=message, severity="warning"))
        return found


def _same(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(abs(a - b) < _SAME for a, b in zip(one, other, strict=True))


def _record(number: int, course: _Course, samples: int) -> dict[str, JSON]:
    concepts: dict[str, JSON] = {
        source: {
            "groups": [group.title for group in groups],
            "target": list(course.goal(source)),
            "mixture": list(course.weights[source]),
            "done": source in course.settled,
            "rounds": [
                {"weights": list(seen.weights), "counts": list(seen.counts), "others": seen.others}
                for seen in course.rounds[source]
            ],
        }
        for source, groups in course.goals.items()
    }
    return {"edit": number, "samples_per_prompt": samples, "concepts": concepts}
