"""The report as a title and blocks, in the order in which a reviewer asks: may it merge, is it better, what broke, what
changed, how was it made. In: the report's data, which may come from a stranger. All of its texts are `Data`.
"""

from typing import Any

from tools.reporting import kept
from tools.reporting.render import Block, Chart, Data, Diff, Heading, Inline, Line, Paragraph, Table

ARROW = " → "
NONE = "(none)"
UNCHANGED = {
    "params": "params",
    "base model": "base_model",
    "libraries": "libraries",
    "contract": "contract",
    "code of the pipeline": "code",
}
OTHER_QUESTIONS = "⚠️ `data/general` was changed: before and after are about different questions or texts."
SORTS = ("added", "removed", "relabelled", "reworded")


def status(report: dict[str, Any]) -> str:
    """'refused', 'fail' or 'pass', from what the report holds."""
    if report["refused"]:
        return "refused"
    return "fail" if report["problems"]["total"] or breaches(report) else "pass"


def breaches(report: dict[str, Any]) -> list[tuple[str | Data, ...]]:
    """Every rule and limit that is broken, in words."""
    rules = report["comparison"]["rules"] if report["comparison"] else []
    return [
        *(breach(rule) for rule in rules if not rule["holds"]),
        *((overstepped(*found),) for found in kept.broken(report["kept"])),
    ]


def title(report: dict[str, Any]) -> tuple[str | Data, ...]:
    """The verdict and its reason in one line."""
    verdict = status(report)
    if verdict == "refused":
        return ("⚪ Not compared: ", Data(report["refused"]))
    if verdict == "pass":
        return ("✅ The gate holds: ", *sentence(report["comparison"]["metrics"][0]))
    problems, broken = report["problems"], breaches(report)
    if problems["total"]:
        first = problems["items"][0]
        more = problems["total"] - 1 + len(broken)
        return ("❌ The gate fails: ", Data(first["file"]), ": ", Data(first["reason"]), and_more(more))
    return ("❌ The gate fails: ", *broken[0], and_more(len(broken) - 1))


def and_more(count: int) -> str:
    return f" (and {count} more)" if count else ""


def sentence(metric: dict[str, Any]) -> tuple[str | Data, ...]:
    """A metric's change in words."""
    rates = f" {metric['before']:.3f}{ARROW}{metric['after']:.3f}"
    change = f" ({difference(metric)}, p = {metric['p_value']:.2g}): "
    return (Data(metric["system"]), " ", Data(metric["metric"]), rates, change, evidence(metric))


def breach(rule: dict[str, Any]) -> tuple[str | Data, ...]:
    """How a rule is broken."""
    name = (Data(rule["system"]), " ", Data(rule["metric"]))
    if rule["check"] == "drop":
        return (*name, f" got worse by more than the tolerated {rule['limit']:g}: the change is within {ends(rule)}")
    return (*name, f" must be {limit(rule)}, and is within {ends(rule)}")


def overstepped(limit: kept.Limit, found: kept.Figures, allowed: float) -> str:
    """How a limit of what was kept and copied is broken."""
    return f"{limit.breach}: {limit.what} is {limit.words(found)}, {limit.rule} {allowed:g} is tolerated"


def limit(rule: dict[str, Any]) -> str:
    """What a rule asks for."""
    words = "drop at most" if rule["check"] == "drop" else {"higher": "at least", "lower": "at most"}[rule["direction"]]
    return f"{words} {rule['limit']:g}"


def ends(rule: dict[str, Any]) -> str:
    """The interval that a rule looked at; that of a change has signs."""
    sign = "+" if rule["check"] == "drop" else ""
    return f"[{rule['low']:{sign}.3f}, {rule['high']:{sign}.3f}]"


def difference(metric: dict[str, Any]) -> str:
    return f"{metric['difference']:+.3f} [{metric['low']:+.3f}, {metric['high']:+.3f}]"


def evidence(metric: dict[str, Any]) -> str:
    if metric["evidence"] != "no evidence":
        return str(metric["evidence"])
    return f"no evidence of a change; {metric['n']} rows show ±{metric['detectable']:.3f} or more"


def blocks(report: dict[str, Any]) -> list[Block]:
    """Everything below the title."""
    comparison, changes = report["comparison"], report["changes"]
    return [
        *opening(report),
        *(compared(comparison) if comparison else []),
        *kept_and_copied(report["kept"]),
        *data(changes),
        *settings(changes),
        *made(changes),
        *(judged(comparison["rules"], comparison["confidence"]) if comparison else []),
    ]


def opening(report: dict[str, Any]) -> list[Block]:
    """What was compared with what, and what is wrong with it."""
    before, after = (side_name(report[side]) for side in ("base", "head"))
    found: list[Block] = [Paragraph(("From ", before, " to ", after, ". ", *pairs(report["comparison"])))]
    if report["rules_changed"]:
        found.append(Paragraph(("⚠️ This change alters the gate's own rules; it was judged by those of the base.",)))
    if problems := report["problems"]["items"]:
        rows = [[Data(problem["file"]), Data(problem["reason"])] for problem in problems]
        found.append(Table(("file", "what is wrong"), rows, report["problems"]["total"] - len(problems)))
    return found


def side_name(side: dict[str, str]) -> Data:
    """What the user called a side, and its commit unless that is what it was called."""
    known = side["commit"].startswith(side["name"])
    return Data(side["commit"][:12] if known else f"{side['name']} ({side['commit'][:7]})")


def pairs(comparison: dict[str, Any] | None) -> tuple[str | Data, ...]:
    """How many answers were paired, and why not all."""
    if not comparison:
        return ()
    left_out = {
        "only before": comparison["only_before"],
        "only after": comparison["only_after"],
        "with another request or expected answer": comparison["edited"],
    }
    words = f"{comparison['shared']} test answers are on both sides"
    if any(left_out.values()):
        words = "**The test set changed**: compared on the " + words + "; left out: "
        words += ", ".join(f"{count} {name}" for name, count in left_out.items() if count)
    scorer: list[str | Data] = []
    for number, name in enumerate(comparison["scorer"]):
        scorer += [", " if number else " **The scorer changed**, each side was scored by its own: ", Data(name)]
    return (f"{words}.", *scorer, "." if scorer else "")


def compared(comparison: dict[str, Any]) -> list[Block]:
    """Metrics, flips and slices."""
    wide = f"difference [{comparison['confidence']:.0%}]"
    header = ("system", "metric", "before", "after", wide, "p", "mended / broken", "n", "in words")
    first = comparison["metrics"][0]
    flips, asked = comparison["flips"], (Data(first["system"]), " ", Data(first["metric"]))
    return [
        Heading("Metrics"),
        Table(header, [metric_row(metric) for metric in comparison["metrics"]]),
        Heading("Answers that flipped"),
        Paragraph((f"{flips['broken']['total']} broken, {flips['fixed']['total']} mended, by ", *asked, ".")),
        *(flipped(name, flips[name]) for name in ("broken", "fixed") if flips[name]["total"]),
        *slices(comparison),
    ]


def metric_row(metric: dict[str, Any]) -> list[Inline]:
    rates = [f"{metric['before']:.3f}", f"{metric['after']:.3f}", difference(metric), f"{metric['p_value']:.2g}"]
    counts = [f"{metric['fixed']} / {metric['broken']}", str(metric["n"])]
    return [Data(metric["system"]), Data(metric["metric"]), *rates, *counts, evidence(metric)]


def flipped(name: str, listed: dict[str, Any]) -> Diff:
    entries = [flip(item) for item in listed["items"]]
    words = {"broken": "Broken: right before, wrong now", "fixed": "Mended: wrong before, right now"}
    label = f"{words[name]} ({listed['total']})"
    return Diff(label, entries, listed["total"] - len(entries), name == "broken")


def flip(item: dict[str, Any]) -> list[Line]:
    """An answer before and after; the fields in which the wrong one differs stand below it."""
    broken = not item["after_right"]
    return [
        Line("@", "", f"{item['id']} {item['kind']}"),
        Line(" ", "request", item["request"]),
        Line(" ", "expected", item["expected"]),
        Line("+" if broken else "-", "before", item["before"] or "as expected"),
        Line("-" if broken else "+", "after", item["after"] or "as expected"),
        *(Line("!", "differs", words) for words in differences(item["fields"])),
    ]


def differences(fields: list[dict[str, str]]) -> list[str]:
    """A line for each field that has another value; one for those left out or added, as another kind of answer does."""
    other = [f"{f['name']} is {f['given']}, not {f['expected']}" for f in fields if f["given"] and f["expected"]]
    lost = ", ".join(f["name"] for f in fields if not f["given"])
    extra = ", ".join(f["name"] for f in fields if not f["expected"])
    both = [f"{words} {names}" for words, names in (("without", lost), ("with", extra)) if names]
    return [*other, "; ".join(both)] if both else other


def slices(comparison: dict[str, Any]) -> list[Block]:
    """Kinds of answer that moved; the intervals are wider, since there are as many looks as kinds."""
    moved, seen = comparison["slices"], comparison["slices_seen"]
    if not seen:
        return []
    if not moved:
        return [Paragraph((f"None of the {seen} kinds of answer moved beyond its interval.",))]
    header = ("kind of answer", "before", "after", f"difference [widened for {seen} looks]", "mended / broken", "n")
    rows = [[Data(part["kind"]), *metric_row(part)[2:5], *metric_row(part)[6:8]] for part in moved]
    return [Paragraph((f"Kinds of answer that moved beyond their interval, of {seen}:",)), Table(header, rows)]


def kept_and_copied(found: dict[str, kept.Sides]) -> list[Block]:
    """What the tuned model still can beside its task, and what it recites; each limit with both sides' figures."""
    rows: list[list[Inline]] = []
    for limit in kept.LIMITS:
        before, after = (found[limit.part][side] for side in ("before", "after"))
        if before or after:
            allowed = limit.allowed(before, after)
            holds = "" if after is None else "yes" if limit.holds(after, allowed) else "**no**"
            rows.append([limit.what, limit.words(before), limit.words(after), f"{limit.rule} {allowed:g}", holds])
    absent = [file for part, file in kept.FILES.items() if not any(found[part].values())]
    return [
        Heading("Kept and copied"),
        *([Table(("", "before", "after", "limit", "holds"), rows)] if rows else []),
        *([Paragraph((OTHER_QUESTIONS,))] if kept.asked_otherwise(found) else []),
        *([Paragraph((f"Measured on neither side: {', '.join(absent)}.",))] if absent else []),
        *rates(found),
    ]


def rates(found: dict[str, kept.Sides]) -> list[Block]:
    """The shares behind the differences, of the later side, and the rows that were recited."""
    retention, memorisation = (found[part]["after"] for part in ("retention", "memorisation"))
    blocks: list[Block] = []
    if retention:
        shares = f"base {retention['base']:.3f}, tuned {retention['tuned']:.3f} of {retention['n']}"
        blocks.append(Paragraph((f"General questions right: {shares}.",)))
    if memorisation:
        words = "{train:.3f} of {train_n} training rows, {test:.3f} of {test_n} test rows".format_map(memorisation)
        ids = memorisation["ids"]
        more = round(memorisation["train"] * memorisation["train_n"]) - len(ids)
        listed = [part for name in ids for part in (", ", Data(name))][1:]
        rest = [". The training rows: ", *listed, f" and {more} more" if more > 0 else ""] if ids else []
        blocks.append(Paragraph((f"Answers recited without their request: {words}", *rest, ".")))
    return blocks


def data(changes: dict[str, Any]) -> list[Block]:
    """Rows and checklist."""
    found: list[Block] = [Heading("Data")]
    for folder, name in (("raw", "Training rows"), ("test", "Test rows")):
        part = changes["data"][folder]
        counts = ", ".join(f"{part[sort]['total']} {sort}" for sort in SORTS if part[sort]["total"])
        found.append(Paragraph((f"{name}: {part['before']}{ARROW}{part['after']}, {counts or 'unchanged'}.",)))
        found += [row_list(f"{name} {sort}", sort, part[sort]) for sort in SORTS if part[sort]["total"]]
    found += change_table("Data that DVC holds, by md5", changes["pointers"])
    return [*found, *change_table("Figures of the data checklist that changed", changes["checklist"])]


def row_list(label: str, sort: str, listed: dict[str, Any]) -> Diff:
    """The first rows of a sort, with what they were where they are still there."""
    sign = "-" if sort == "removed" else "+"
    entries = [
        [
            Line("@", "", row["id"]),
            Line(" " if "was" in row else sign, "request", row["request"]),
            *([Line("-", "was", row["was"])] if "was" in row else []),
            Line(sign, "answer", row["answer"]),
        ]
        for row in listed["items"]
    ]
    shown = f", the first {len(entries)}" if listed["total"] > len(entries) else ""
    return Diff(f"{label} ({listed['total']}{shown})", entries, listed["total"] - len(entries))


def change_table(label: str, listed: dict[str, Any]) -> list[Block]:
    """Names with their values before and after; nothing where nothing changed."""
    if not listed["total"]:
        return []
    rows = [[Data(item["name"]), Data(item["before"] or NONE), Data(item["after"] or NONE)] for item in listed["items"]]
    return [Paragraph((f"{label}:",)), Table(("name", "before", "after"), rows, listed["total"] - len(rows))]


def settings(changes: dict[str, Any]) -> list[Block]:
    """Params, libraries, contract and code."""
    contract, code = changes["contract"], changes["code"]
    found: list[Block] = [
        *change_table("Params", changes["params"]),
        *change_table("Base model", changes["base_model"]),
        *change_table("Libraries of the run", changes["libraries"]),
        *change_table("Pinned libraries", changes["pins"]),
    ]
    if contract["total"]:
        lines = [[Line(line[:1] if line[:1] in ("+", "-") else " ", "", line[1:])] for line in contract["items"]]
        label = f"Contract, data/schema.json ({contract['total']} lines)"
        found.append(Diff(label, lines, contract["total"] - len(lines)))
    if code["total"]:
        names = [part for name in code["items"] for part in (", ", Data(name))][1:]
        more = f" and {code['total'] - len(code['items'])} more" if code["total"] > len(code["items"]) else ""
        found.append(Paragraph(("Code of the pipeline: ", *names, more, ".")))
    same = [name for name, key in UNCHANGED.items() if not changes[key]["total"]]
    if same:
        found.append(Paragraph((f"Unchanged: {', '.join(same)}.",)))
    return [Heading("Settings and code"), *found]


def made(changes: dict[str, Any]) -> list[Block]:
    """How each side's metrics were made, the base model among it, and the loss of both runs."""
    rows: list[list[Inline]] = [
        [Data(item[part] or NONE) for part in ("name", "before", "after")] for item in changes["run"]
    ]
    curves = Chart("Training loss", changes["curve"]["before"], changes["curve"]["after"])
    return [Heading("How the runs were made"), Table(("", "before", "after"), rows), curves]


def judged(rules: list[dict[str, Any]], confidence: float) -> list[Block]:
    """The gate's rules, each with the interval that it looked at."""
    header = ("system", "metric", "rule", "interval", "holds")
    rows: list[list[Inline]] = [
        [Data(rule["system"]), Data(rule["metric"]), limit(rule), ends(rule), "yes" if rule["holds"] else "**no**"]
        for rule in rules
    ]
    why = (
        f"A rule fails only when its whole interval lies beyond the limit; the intervals are as wide as it takes for "
        f"{confidence:.0%} of changes that do nothing to pass all of them."
    )
    return [Heading("The gate's rules"), Table(header, rows), Paragraph((why,))]
