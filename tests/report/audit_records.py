"""Records of audits made by hand, one of them full of hostile texts."""

from dataclasses import replace

from surgery.record import Finding
from surgery.report.audit_record import (
    AuditRecord,
    Claim,
    Spectrum,
    TensorRow,
    Total,
    WordReport,
    WordRow,
)

HOSTILE = "\"><img src=x onerror=alert(1)></script><script>alert(2)</script>&amp;'{{7*7}}\u2028]]>"
BACKWARDS = "safe\u202etxt.exe\x1b[31m\x00"


def spectrum(*values: float, exact: bool = True) -> Spectrum:
    return Spectrum(
        values=values,
        count=max(10, len(values)),
        exact=exact,
        rank=len(values),
        held=1.0,
        effective_rank=1.5,
        rounding=1e-3,
        rounding_share=1e-6,
    )


def row(name: str, **facts: object) -> TensorRow:
    plain = TensorRow(
        name=name,
        component=name.partition("/")[0],
        block="layer 3",
        role="mlp_out",
        shape=(20, 10),
        dtypes=("float16", "float16"),
        state="changed",
        elements=200,
        changed=150,
        largest=0.25,
        norm=2.0,
        base_norm=4.0,
        rows=(20, 20),
        columns=(10, 10),
        structure="most",
        factor=1.5,
        misfit=0.7,
        spectrum=spectrum(2.0, 0.5),
    )
    return replace(plain, **facts)  # type: ignore[arg-type]  # a helper of tests


def total(component: str, block: str = "", role: str = "", touched: int = 1) -> Total:
    return Total(
        component=component,
        block=block,
        role=role,
        tensors=2,
        touched=touched,
        elements=400,
        changed=150 * touched,
        norm=2.0 * touched,
        relative=0.5 if touched else None,
    )


def word(phrase: str, strength: float, touched: bool = False) -> WordRow:
    return WordRow(
        phrase=phrase,
        strength=strength,
        deviations=strength / 3,
        needed=4.0,
        share=min(1.0, strength / 40),
        chance=0.2,
        activation=1.1,
        touched=touched,
    )


def record(text: str = "plain") -> AuditRecord:
    """A record with something in every place; ``text`` stands wherever a file could have put it."""
    return AuditRecord(
        summary=f"1 of 2 tensors changed {text}",
        sides={"base": {"path": text, "metadata": {text: text, "deep": {"list": [1, text]}}}},
        claims=(
            Claim(
                kind="text-mlp-low-rank",
                subject=text,
                sure="certain",
                statement=f"A low-rank edit {text}",
                evidence=(f"rank 2 {text}",),
                tensors=1,
            ),
        ),
        totals=(total("text_encoder"), total("unet", touched=0)),
        cells=(total("text_encoder", "layer 3", "mlp_out"), total("text_encoder", "layer 3", "norm", 0)),
        roles=("mlp_out", "norm"),
        tensors=(
            row(f"text_encoder/{text}.weight"),
            row("text_encoder/same.weight", state="same", changed=0, norm=0.0, spectrum=None),
        ),
        words=WordReport(
            statement=f"The change is about 1 of 2 phrases {text}",
            rows=(word(text, 20.0, touched=True), word("dog", 1.0)),
            strength=4.0,
            share=0.1,
            added=549,
            sites=1,
            left_out=(f"{text}: too long",),
        ),
        expected={"state": "after", "patch": text, "tensors": {text: {"state": "after"}}},
        findings=(Finding(kind="not-finite", subject=text, message=f"NaN {text}", severity="fault"),),
        notes={"spectra": True, "words": text},
    )
