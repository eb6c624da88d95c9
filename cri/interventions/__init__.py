"""Interventions: edits of a trace and of a rule, patched activations, attention cut off, probes checked by swaps.

`edits` and `rule_edits` change the text that a model goes on from, `patching` (with `pairs`) its activations,
`knockout` what its attention may see; `components` and `probes` are for the direct format. All results are
tidy tables aligned to case ids, or arrays over pairs of cases.
"""

from cri.interventions.components import logit_attribution
from cri.interventions.edits import KINDS, CaseEdit, element_kind, sample_edits, step_edits
from cri.interventions.knockout import GROUPS, attention_knockout, step_tokens
from cri.interventions.pairs import VARIABLES, Pairs, make_pairs
from cri.interventions.patching import PatchMap, patch_map, patch_sites, patched_logits
from cri.interventions.probes import ablate, fit_probe, probe_labels, probe_table, random_basis, swap_pairs
from cri.interventions.rule_edits import RULE_EDITS, edit_rules, edited_source

__all__ = [
    "GROUPS",
    "KINDS",
    "RULE_EDITS",
    "VARIABLES",
    "CaseEdit",
    "Pairs",
    "PatchMap",
    "ablate",
    "attention_knockout",
    "edit_rules",
    "edited_source",
    "element_kind",
    "fit_probe",
    "logit_attribution",
    "make_pairs",
    "patch_map",
    "patch_sites",
    "patched_logits",
    "probe_labels",
    "probe_table",
    "random_basis",
    "sample_edits",
    "step_edits",
    "step_tokens",
    "swap_pairs",
]
