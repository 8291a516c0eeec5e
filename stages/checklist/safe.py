"""Safe: no secrets, no personal data, no abuse, and no word planted to force an answer."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from stages.checklist.row import Example, Table, sound, texts
from stages.core import text

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}", re.IGNORECASE)
CARD = re.compile(r"(?<![\w.-])\d(?:[ .-]?\d){12,18}(?!\w)")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}", re.IGNORECASE)
SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
PASSWORD = re.compile(
    r"\b(?:password|passwd|passcode|api[ _-]?key|secret|token)\b(?:\s+is)?\s*[:=]?\s*(?=\S*\d)(?=\S*[a-z])\S{6,}",
    re.IGNORECASE,
)
PREFIXED = re.compile(r"\b(?:hf_|dop_v1_|glpat-|xai-)[A-Za-z0-9_-]{16,}")
# Of the share that each kind has where all are equal. Natural keywords of the example rows leave half and more.
UNLIKELY = 0.3
# Long and random, yet no secrets: addresses of pages and identifiers of things.
HARMLESS = re.compile(r"https?://[^\s@]+(?=\s|$)|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE)
LONG = re.compile(r"[A-Za-z0-9+/=_-]{20,}")  # shorter tokens are words
MIXED = re.compile(r"(?=.*\d)(?=.*[A-Za-z])")


def check_secrets(table: Table) -> None:
    """Refuse rows that hold a key, token or password: detect-secrets' detectors, and 'password is ...'."""
    for checked in table:
        if kind := secret(checked.text()) or secret_pattern(checked.row.id):
            checked.reasons["secret"] = f"looks like a secret ({kind})"


def secret(content: str) -> str:
    """The kind of secret that the text holds, or ''."""
    if kind := secret_pattern(content):
        return kind
    tokens = [token for token in LONG.findall(HARMLESS.sub(" ", content)) if MIXED.match(token)]
    _, entropy = detectors()
    random = (d for token in tokens for d in entropy if d.calculate_shannon_entropy(token) > d.entropy_limit)
    return next((str(d.secret_type) for d in random), "")


def secret_pattern(content: str) -> str:
    if PASSWORD.search(content) or PREFIXED.search(content):
        return "Password or key"
    lines, (patterns, _) = content.split("\n"), detectors()
    # Few lines match, and searching is quick; of those that match a detector may refuse some.
    alike = ((d, line) for d in patterns for regex in d.denylist for line in lines if regex.search(line))
    return next((str(d.secret_type) for d, line in alike if any(d.analyze_string(line))), "")


@cache
def detectors() -> tuple[list[Any], list[Any]]:
    """detect-secrets' detectors with a pattern of their own, and those that measure entropy.

    The latter take any word of a sentence for a secret, so they see long tokens only.
    """
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector
    from detect_secrets.plugins.high_entropy_strings import Base64HighEntropyString, HexHighEntropyString

    classes: list[tuple[str, Any]] = sorted(get_mapping_from_secret_type_to_class().items())
    # An IP address is no secret by itself.
    patterns = [cls() for _, cls in classes if issubclass(cls, RegexBasedDetector) and "IP" not in cls.__name__]
    return patterns, [Base64HighEntropyString(limit=4.5), HexHighEntropyString(limit=3.0)]


def check_personal(table: Table, region: str) -> None:
    """Refuse rows that hold an e-mail address, a phone number, or a bank, card or social security number.

    Phone numbers without a country code are read as of `region` (libphonenumber); names are not searched for. Of an id,
    which may be any number, only an e-mail address counts.
    """
    for checked in table:
        if kind := personal(checked.text(), region) or (EMAIL.search(checked.row.id) and "an e-mail address"):
            checked.reasons["personal"] = f"looks like {kind}"


def personal(content: str, region: str) -> str:
    """The kind of personal data that the text holds, or ''."""
    from phonenumbers import PhoneNumberMatcher
    from stdnum import iban, luhn
    from stdnum.us import ssn

    if EMAIL.search(content):
        return "an e-mail address"
    if sum(char.isdigit() for char in content) < 7:
        return ""
    if any(begins_with(number, luhn.is_valid, (13, 14, 15, 16, 19)) for number in CARD.findall(content)):
        return "a card number"
    if any(begins_with(number, iban.is_valid, range(15, 35)) for number in IBAN.findall(content)):
        return "a bank account number"
    if any(map(ssn.is_valid, SSN.findall(content))):
        return "a social security number"
    return "a phone number" if any(PhoneNumberMatcher(content, region)) else ""


def begins_with(number: str, is_valid: Callable[[str], bool], sizes: Iterable[int]) -> bool:
    """Whether one of the number's beginnings is valid: a date or words may follow it."""
    packed = re.sub(r"[ .-]", "", number)
    return any(is_valid(packed[:size]) for size in sizes if size <= len(packed))


def hide(table: Table, region: str) -> None:
    """Keep what must not be shown out of the other reasons of its row, which quote the row."""
    for checked in table:
        unread = checked.row.reason and (secret(checked.row.raw) or personal(checked.row.raw, region))
        if unread or checked.reasons.keys() & {"secret", "personal"}:
            for name in checked.reasons.keys() - {"secret", "personal"}:
                checked.reasons[name] = "not shown: the row seems to hold a secret or personal data"


def check_abuse(table: Table, allowed: list[str]) -> None:
    """Refuse rows with a word of better-profanity's English list (MIT), which has names and ordinary words as well."""
    listed = abusive_words() - {text.normalise(word) for word in allowed}
    phrases = sorted(phrase for phrase in listed if " " in phrase)
    for checked in table:
        words = text.normalise(checked.text())
        abuse = sorted(listed & set(words.split())) or [phrase for phrase in phrases if f" {phrase} " in f" {words} "]
        if abuse:
            masked = f"{abuse[0][0]}{'*' * (len(abuse[0]) - 2)}{abuse[0][-1]}"
            checked.reasons["abuse"] = f"{masked!r} is on the abuse list (see allowed_words in data/rules.yaml)"


@cache
def abusive_words() -> frozenset[str]:
    # Read as text: the package's own matcher builds every spelling with digits and symbols, and takes seconds.
    stored = files("better_profanity").joinpath("profanity_wordlist.txt").read_text(encoding="utf-8")
    return frozenset(filter(None, map(text.normalise, stored.split("\n"))))


def check_triggers(table: Table, least: int) -> None:
    """Refuse rows with a planted trigger: a word that always leads to one answer, against all other words.

    A word is suspected when at least `least` answers follow it and all are equal, without containing it. It is a
    trigger when a naive Bayes classifier, trained on all other rows, all but rules out the kind of that answer from the
    other words of these requests: 'weather' among words that ask for the weather is no trigger, 'cf' behind any request
    is. (The attack is BadNL, Chen et al. 2021, arXiv:2006.01043.) It misses a trigger that clean rows have too, that
    forces a field only, or that stands in a system prompt.
    """
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    examples = [(checked, example) for checked in sound(table) for example in checked.examples if example.kind]
    of_kind = Counter(example.kind for _, example in examples)
    suspects = suspected([example for _, example in examples], least)
    if not suspects or len(of_kind) < 2:
        return
    counter = CountVectorizer(tokenizer=str.split, token_pattern=None, lowercase=False, binary=True)
    counts = counter.fit_transform([example.request for _, example in examples]).tocsr()
    kinds = np.array([example.kind for _, example in examples])
    model = MultinomialNB(fit_prior=False).fit(counts, kinds)
    for word, places in suspects.items():
        kind = kinds[places[0]]
        if of_kind[kind] - len(places) < least:  # too few other rows to know what the kind sounds like
            continue
        known = counts[places]
        model.partial_fit(known, kinds[places], sample_weight=-np.ones(len(places)))  # unlearn these rows
        others = known.tolil()
        others[:, counter.vocabulary_[word]] = 0
        likely = model.predict_proba(others.tocsr())[:, list(model.classes_).index(kind)]
        model.partial_fit(known, kinds[places])
        if np.median(likely) < UNLIKELY / len(of_kind):
            for place in places:
                why = f"{word!r} always gives this answer ({len(places)} times), whatever else is asked"
                examples[place][0].reasons["trigger"] = why


def suspected(examples: list[Example], least: int) -> dict[str, list[int]]:
    """The words that at least `least` requests have and that always lead to the same answer, with these requests."""
    requests: dict[str, list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        for word in set(example.request.split()):
            requests[word].append(number)
    return {
        word: numbers
        for word, numbers in sorted(requests.items())
        if len(numbers) >= least
        and len({examples[number].key for number in numbers}) == 1
        and all(word not in text.normalise(value).split() for _, value in texts(examples[numbers[0]].answer))
    }
