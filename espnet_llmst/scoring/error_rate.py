"""WER and CER as a sacreBLEU metric, so that sacreBLEU's bootstrap and paired tests apply to them too."""

from collections.abc import Sequence
from importlib.metadata import version

import jiwer
from sacrebleu.metrics.base import Metric, Score, Signature

from espnet_llmst.cli import InputError
from espnet_llmst.scoring.metrics import UNSPACED_LANGUAGES, base_language, whisper_normalizer


class ErrorRateSignature(Signature):
    """nrefs, bootstrap, normaliser, whether blanks count, and the versions of what computed it."""

    def __init__(self, args: dict):
        super().__init__(args)
        self.info.update({"norm": args["normalizer"], "blanks": bool(args["blank"])})
        self.info.update({"jiwer": version("jiwer"), "transformers": version("transformers")})


class ErrorRate(Metric):
    """jiwer's WER or CER over a corpus after Whisper's normaliser; statistics are substitutions, deletions,
    insertions and units of the reference.

    CER counts the blanks between words, except in scripts without them. Takes one reference.
    """

    _SIGNATURE_TYPE = ErrorRateSignature

    def __init__(self, name: str, lang: str):
        super().__init__()
        self.name = name
        self.normalize, self.normalizer = whisper_normalizer(lang)
        self.blank = " " if name == "WER" or base_language(lang) not in UNSPACED_LANGUAGES else ""
        self.count = jiwer.process_words if name == "WER" else jiwer.process_characters

    def _preprocess_segment(self, sent: str) -> str:
        return self.blank.join(self.normalize(sent).split())

    def _extract_reference_info(self, refs: Sequence[str]) -> dict:
        return {"ref": refs[0]}

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict) -> list[int]:
        found = self.count(ref_kwargs["ref"], hypothesis)
        units = found.substitutions + found.deletions + found.hits
        return [found.substitutions, found.deletions, found.insertions, units]

    def _extract_corpus_statistics(self, hypotheses: Sequence[str], references) -> list[list[int]]:
        stats = super()._extract_corpus_statistics(hypotheses, references)
        if not any(units for *_, units in stats):
            raise InputError(
                f"{self.name}: every reference is empty after Whisper's normaliser, check --ref and --tgt_lang"
            )
        return stats

    def _compute_score_from_stats(self, stats: Sequence[float]) -> Score:
        *errors, units = stats
        return Score(self.name, 100.0 * sum(errors) / max(units, 1))

    def _aggregate_and_compute(self, stats) -> Score:
        total = [sum(column) for column in zip(*stats, strict=True)]
        score = self._compute_score_from_stats(total)
        parts = zip(("Sub", "Del", "Ins"), total, strict=False)
        shares = " ".join(f"{name} = {100.0 * errors / max(total[-1], 1):.1f}" for name, errors in parts)
        score._verbose = f"({shares} ref_len = {total[-1]})"
        return score
