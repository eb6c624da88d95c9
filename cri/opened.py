"""A finished run with what one asks of it, in a line each: nearest cases, influence, logit lens, patches, edits, maps.

Every method is a thin composition of the functions that the studies use, and takes a case as its id or as (a, b).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from cri.attribution.methods import METHODS
from cri.attribution.methods import find as find_method
from cri.checks import checked
from cri.errors import CriError, out_of_range, unknown_name
from cri.storage import is_complete
from cri.training.runs import Run
from cri.training.runs import load_run as _load_run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from torch.nn import Module

    from cri.attribution.questions import Question
    from cri.explore.inline import Inline
    from cri.models.activations import Site

CaseLike = int | tuple[int, int]
Explained = Literal["predicted", "true"]
_TARGETS = {"predicted": "prediction", "true": "reference"}
RUNS = Path("runs")
"""Where runs are looked for by name."""


@dataclass(frozen=True, eq=False, repr=False)
class OpenRun(Run):
    """A finished run, opened. Besides the attributes of `Run`, its methods answer single questions about single cases;
    for many cases at once use the functions they are made of."""

    def __repr__(self) -> str:
        accuracy = self.predictions.groupby("part")["correct"].mean()
        shown = ", ".join(f"{part} {share:.3f}" for part, share in accuracy.items())
        return f"<run {self.path.name}: {self.task.n_cases} cases; accuracy {shown}>"

    def case(self, a: int, b: int) -> int:
        """The id of a case; every table and array of the package is aligned to these. Raises `CriError` outside the
        grid."""
        return self.task.id_of(a, b)

    def logit_lens(self, case: CaseLike, k: int = 3) -> pd.DataFrame:
        """What the model would write first if it stopped after each layer.

        The residual stream at the last prompt token, through the last LayerNorm and the unembedding. One row a site:
        `site`, `answer_rank` (0: the right answer's first token comes first), `answer_logprob` (nats), and the `k`
        first tokens as `top`.
        """
        import pandas as pd
        import torch

        from cri.models.activations import collect, residual_sites

        bridge, i = self.bridge, self._id(case)
        if not 1 <= k <= bridge.cfg.d_vocab:
            raise out_of_range("k", k, f"in 1..{bridge.cfg.d_vocab}")
        answer = int(self.tokens.ids[i, self.tokens.prompt_lengths[i]])
        rows = []
        for site, vector in collect(bridge, self.tokens, residual_sites(bridge), np.array([i])).items():
            with torch.no_grad():
                logits = bridge.unembed(bridge.ln_final(torch.from_numpy(vector)[:, None]))[0, 0].float()
            rows.append({
                "site": str(site), "answer_rank": int((logits > logits[answer]).sum()),
                "answer_logprob": float(logits.log_softmax(-1)[answer]),
                "top": [str(self.tokenizer.decode([t])) for t in logits.topk(k).indices.tolist()],
            })  # fmt: skip
        return pd.DataFrame(rows)

    def patch(self, source: CaseLike, target: CaseLike, site: str | Site | None = None) -> pd.DataFrame:
        """Writes the source case's activation into the target case at one site, or at each residual site in turn.

        One row a site: `site`, `answer` (the token that the model now writes first), `before` (without the patch),
        `toward_source` (change of the log-odds between the source's and the target's first answer token, nats).

        Raises `CriError` for a site that the model lacks, and for a position where the two prompts differ in length.
        """
        import pandas as pd
        import torch

        from cri.interventions.patching import patched_logits
        from cri.models.activations import PROMPT_END, residual_sites

        bridge = self.bridge
        sites = residual_sites(bridge) if site is None else [self._site(site)]
        from_id, to_id = self._id(source), self._id(target)
        lengths = [int(self.tokens.prompt_lengths[i]) for i in (from_id, to_id)]
        if lengths[0] != lengths[1]:
            raise CriError(f"source: its prompt has {lengths[0]} tokens and the target's {lengths[1]}; must be as long")
        base, other = (self.tokens.ids[i : i + 1, : lengths[0]] for i in (to_id, from_id))
        own, wanted = (int(self.tokens.ids[i, lengths[0]]) for i in (to_id, from_id))
        with torch.no_grad():
            plain = bridge(base)[0, -1]
            rows = []
            for where in sites:
                at = replace(where, position=lengths[0] - 1) if where.position == PROMPT_END else where
                logits = patched_logits(bridge, base, other, at)[0, -1]
                change = (logits[wanted] - logits[own]) - (plain[wanted] - plain[own])
                rows.append({
                    "site": str(where), "answer": str(self.tokenizer.decode([int(logits.argmax())])),
                    "before": str(self.tokenizer.decode([int(plain.argmax())])), "toward_source": float(change),
                })  # fmt: skip
        return pd.DataFrame(rows)

    def nearest(
        self, case: CaseLike, k: int = 10, site: str | Site | None = None, metric: str = "cosine"
    ) -> pd.DataFrame:
        """The `k` training cases that lie nearest to a case at a site (the last layer's residual stream at the last
        prompt token where none is given), best first.

        `case, a, b, answer, distance` (on the grid), `group` (of `cri.data.case_groups.GROUPS`, relative to what the
        model answers), `similarity`. Nearness is association, not evidence: see `python -m
        cri.studies.neighbor_attribution` for its controls.
        """
        from cri.attribution.neighbors import nearest
        from cri.models.activations import collect, residual_sites

        where = residual_sites(self.bridge)[-1] if site is None else self._site(site)
        i, train = self._id(case), self.split.train_ids[self.split.train_ids != self._id(case)]
        acts = collect(self.bridge, self.tokens, [where], np.array([i, *train]))[where]
        found, scores = nearest(acts[1:], acts[:1], k, metric)
        return self._listed(i, train[found[0]]).assign(similarity=scores[0])

    def influence(
        self, case: CaseLike, method: str = "EK-FAC", target: Explained = "predicted", k: int | None = 10
    ) -> pd.DataFrame:
        """Training cases by how much they support one answer of the model, by any method of `cri.attribution.methods`.

        Args:
            case: the explained case.
            method: `EK-FAC` (damped by `cri.attribution.damping.DAMPING`, as in every study), `GradDot`, `GradCos`,
                `same_answer`, ...; the methods that look at every layer (`cosine`, ...) take the last one here. Of a
                pretrained model that was trained in part, gradients are those of that part (its adapters, say).
            target: whose answer is explained: what the model answers (`predicted`, as in the studies), or the right
                one (`true`). They differ where the model is wrong.
            k: how many, best first; None lists all.

        Returns:
            `case, a, b, answer, distance, group` as in `nearest`, and `score` (larger: supports the answer more).
        """
        i = self._id(case)
        chosen = find_method(method)
        *_, (_, scores) = chosen.score(self._question(i, target))
        train = self.split.train_ids
        if k is not None and not 1 <= k <= len(train):
            raise out_of_range("k", k, f"in 1..{len(train)}, or None for all")
        order = np.argsort(-scores[:, 0], kind="stable")[:k]
        return self._listed(i, train[order], target).assign(score=scores[order, 0])

    def trace(self, case: CaseLike) -> pd.DataFrame:
        """The reference trace of a case, one row a line: `line, text, step, executes, elements` (name -> text), and
        `written`, whether the model's own completion has the same line. Raises `CriError` for the direct format."""
        from cri.formats.traces import trace_table

        i = self._id(case)
        lines = self._lines(i)
        own = str(self.decoded([i])["completion"].iloc[0])
        return trace_table(lines).assign(written=[own[line.start : line.stop] == line.text for line in lines])

    def edit(self, case: CaseLike, element: str, value: str, line: int | None = None) -> pd.Series[Any]:
        """Changes one element of a case's trace, lets the model continue, and reports its answer.

        Args:
            element: its name, such as `carry` (see `trace`).
            value: the new text.
            line: number of the trace's line; by default the first line whose element is not `value` already.

        Returns:
            The row of `cri.interventions.step_edits`: `expected` (what the rule answers from the edited trace),
            `unedited`, `answer`, `outcome` (`follows`, `returns`, `breaks`, `truncated`), `text`, ...
        """
        from cri.formats.traces import edit_of
        from cri.interventions.edits import CaseEdit, step_edits

        i = self._id(case)
        return step_edits(self, [CaseEdit(i, edit_of(self._lines(i), element, value, line))]).iloc[0]

    def explore(
        self,
        case: CaseLike | None = None,
        method: str = "cosine",
        *others: Run,
        cases: int = 49,
        methods: Sequence[str] = ("GradCos", "EK-FAC"),
        height: int = 900,
    ) -> Inline:
        """The page of `cri explore`, shown inline in a notebook.

        Args:
            case: that it opens with; by default the middle of the square.
            method: that training cases are first shown by: one of `methods`, a similarity (`cosine`, `euclidean`,
                `whitened_cosine`), or a model-free baseline.
            others: runs of the same grid to stand beside this one, such as one of a random split.
            cases: held-out cases that are explained. The default takes seconds; 441 are the paper's square.
            methods: attribution methods that are scored.
            height: of the frame, in pixels.

        Returns:
            What a notebook shows as a frame, and `save(path)` writes as a file. Raises `CriError` for a method that is
            not scored, and as `cri.explore.payload.payload` does.
        """
        from cri.explore.inline import Inline, check_method
        from cri.explore.payload import payload

        place = None if case is None else tuple(self.task.coords[self._id(case)].tolist())
        check_method(method, methods)
        return Inline.of(payload([self, *others], methods, cases), place, method, height)

    def map(self, values: str | Sequence[float] | np.ndarray = "correct", ax: Axes | None = None) -> Axes:
        """A column of `predictions`, or one number a case, over the grid, with the held-out squares framed."""
        from cri.plots import grid_map

        if isinstance(values, str):
            if values not in self.predictions:
                raise unknown_name("values", values, self.predictions.columns)
            table, name = self.predictions, values
        else:
            array = np.asarray(values, dtype=float)
            if array.shape != (self.task.n_cases,):
                raise CriError(f"values: shape {array.shape} is not one number for each of {self.task.n_cases} cases")
            table, name = self.predictions.assign(value=array[self.predictions["id"].to_numpy()]), "value"
        return grid_map(
            table, name, ax, squares=self.split.squares, axis_names=self.task.axis_names, label=name.replace("_", " ")
        )

    def _id(self, case: Any) -> int:
        if isinstance(case, tuple):
            if len(case) != 2:
                raise CriError(f"case: {case!r} is not (a, b)")
            return self.task.id_of(*case)
        if isinstance(case, bool | np.bool_) or not isinstance(case, int | np.integer):
            raise CriError(f"case: {case!r} is not one case; give its id, or (a, b)")
        if not 0 <= case < self.task.n_cases:
            raise out_of_range("case", int(case), f"an id in 0..{self.task.n_cases - 1}, or (a, b)")
        return int(case)

    def _site(self, site: Any) -> Site:
        from cri.models.activations import Site

        if isinstance(site, str):
            return Site.parse(site)
        if not isinstance(site, Site):
            raise CriError(f"site: {site!r} is not a site; give text such as blocks.0.hook_resid_post@prompt_end")
        return site

    def _lines(self, case: int) -> list[Any]:
        if self.format.name == "direct":
            raise CriError("format: direct writes no trace; open a scratchpad or rfft run")
        return list(self.format.trace(self.task, *self.task.operands[case]))

    def _answer(self, case: int, target: str) -> str:
        if target == "predicted":
            return str(self.decoded([case])["prediction"].iloc[0])
        return self.task.answers[case]

    def _listed(self, case: int, train: np.ndarray, target: str = "predicted") -> pd.DataFrame:
        """Training cases as rows, with how each relates to the case."""
        import pandas as pd

        from cri.data.case_groups import GROUPS, make_groups

        every = self.split.train_ids[self.split.train_ids != case]
        groups = make_groups(self.task, every, np.array([case]), [self._answer(case, target)])
        where = {int(i): n for n, i in enumerate(every)}
        # a training case that explains itself is in no group
        rows = [where.get(int(i)) for i in train]
        return pd.DataFrame({
            "case": train, "a": self.task.cases[train, 0], "b": self.task.cases[train, 1],
            "answer": [self.task.answers[i] for i in train],
            "distance": [0 if n is None else int(groups.distance[n, 0]) for n in rows],
            "group": ["itself" if n is None else GROUPS[groups.codes[n, 0]] for n in rows],
        })  # fmt: skip

    @cached_property
    def _part(self) -> Module | None:
        return self.trained_part()

    @cached_property
    def _questions(self) -> dict[tuple[int, str], Question]:
        return {}

    def _question(self, case: int, target: str) -> Question:
        from cri.attribution.questions import Question

        if target not in get_args(Explained):
            raise unknown_name("target", target, get_args(Explained))
        key = (case, target)
        if key not in self._questions:
            kind: Any = _TARGETS[target]
            known = next(iter(self._questions.values()), None)
            question = Question(
                self, self.split.train_ids, np.array([case]), self.explained([case], kind),
                [self._answer(case, target)], self.model, self.config.seed, self._part,
            )  # fmt: skip
            if known is not None and "fisher" in vars(known):  # of the model, whatever is asked
                vars(question)["fisher"] = known.fisher
            self._questions[key] = question
        return self._questions[key]


def methods() -> list[str]:
    """Names of the attribution methods that `OpenRun.influence` takes."""
    return list(METHODS)


@checked
def load_run(path: Path | str, runs: Path | str = RUNS, altered: bool = False) -> OpenRun:
    """Opens a finished run by its folder, or by the beginning of its name below `runs`.

    Args:
        altered: open a run whose files were edited on purpose, too, and say so on stderr.

    Raises `CriError` when there is no such run or several, `CorruptRunError` when a file was altered or the run was
    made with other data than this code makes.
    """
    folder, runs = Path(path), Path(runs)
    if not folder.exists() and len(folder.parts) == 1 and runs.is_dir():
        found = [p for p in sorted(runs.iterdir()) if p.name.startswith(folder.name) and is_complete(p)]
        if len(found) > 1:
            raise CriError(f"run: {folder.name!r} begins the names of {len(found)}: {', '.join(p.name for p in found)}")
        if found:
            folder = found[0]
    run = _load_run(folder, altered)
    return OpenRun(**{f.name: getattr(run, f.name) for f in fields(run)})
