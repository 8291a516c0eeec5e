"""Safe: no secrets, no personal data, no abuse, and no word planted to force an answer."""

import re
from collections import defaultdict
from functools import cache
from importlib.resources import files
from typing import Any

from stages.checklist.row import Checked, sound
from stages.shared import text

EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}", re.IGNORECASE)
NUMBER = re.compile(r"(?<!\w)[A-Z]{0,2}\d(?:[ -]?[0-9A-Z]){6,32}(?!\w)")  # what an account or card number may look like
UNLIKELY = 0.03  # planted words leave about 0.01 to the kind that they force, the least in the example rows is 0.06
LONG = re.compile(r"[A-Za-z0-9+/=_-]{20,}")  # shorter tokens are words


def check_secrets(table: list[Checked]) -> None:
    """Refuse rows that hold a key, token or password, by detect-secrets' detectors. The reason never repeats it."""
    patterns, entropy = detectors()
    for checked in table:
        content = checked.text()
        lines = content.split("\n")
        kinds = [d.secret_type for d in patterns for line in lines if any(d.analyze_string(line))]
        kinds += [
            d.secret_type
            for token in LONG.findall(content)
            if re.search(r"\d", token) and re.search(r"[A-Za-z]", token)
            for d in entropy
            if d.calculate_shannon_entropy(token) > d.entropy_limit
        ]
        if kinds:
            checked.reasons["secret"] = f"looks like a secret ({kinds[0]})"


@cache
def detectors() -> tuple[list[Any], list[Any]]:
    """detect-secrets' detectors with a pattern of their own, and those that measure entropy.

    The latter take any word of a sentence for a secret, so they see long tokens only.
    """
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector
    from detect_secrets.plugins.high_entropy_strings import Base64HighEntropyString, HexHighEntropyString

    found: list[tuple[str, Any]] = sorted(get_mapping_from_secret_type_to_class().items())
    # An IP address is no secret by itself.
    patterns = [cls() for _, cls in found if issubclass(cls, RegexBasedDetector) and "IP" not in cls.__name__]
    return patterns, [Base64HighEntropyString(limit=4.5), HexHighEntropyString(limit=3.0)]


def check_personal(table: list[Checked], region: str) -> None:
    """Refuse rows that hold an e-mail address, a phone number, or a bank, card or social security number.

    Phone numbers without a country code are read as of `region` (libphonenumber); names are not searched for.
    """
    for checked in table:
        if found := personal(checked.text(), region):
            checked.reasons["personal"] = f"looks like {found}"


def personal(content: str, region: str) -> str:
    from phonenumbers import PhoneNumberMatcher
    from stdnum import iban, luhn
    from stdnum.us import ssn

    if EMAIL.search(content):
        return "an e-mail address"
    if sum(char.isdigit() for char in content) < 7:
        return ""
    for found in NUMBER.findall(content):
        digits = re.sub(r"[ -]", "", found)
        if digits.isdigit() and 13 <= len(digits) <= 19 and luhn.is_valid(digits):
            return "a card number"
        if iban.is_valid(digits):
            return "a bank account number"
        if re.fullmatch(r"\d{3}-\d{2}-\d{4}", found) and ssn.is_valid(found):
            return "a social security number"
    return "a phone number" if any(PhoneNumberMatcher(content, region)) else ""


def check_abuse(table: list[Checked], allowed: list[str]) -> None:
    """Refuse rows with a word of better-profanity's list (MIT) that is not in `allowed`."""
    listed = abusive_words() - {text.normalise(word) for word in allowed}
    phrases = [phrase for phrase in listed if " " in phrase]
    for checked in table:
        words = text.normalise(checked.text())
        padded = f" {words} "
        if not listed.isdisjoint(words.split()) or any(f" {phrase} " in padded for phrase in phrases):
            checked.reasons["abuse"] = "holds a word of the abuse list (validate.allowed_words takes words off it)"


@cache
def abusive_words() -> frozenset[str]:
    # Read as text: the package's own matcher builds every spelling with digits and symbols, and takes seconds.
    stored = files("better_profanity").joinpath("profanity_wordlist.txt").read_text(encoding="utf-8")
    return frozenset(filter(None, map(text.normalise, stored.split("\n"))))


def check_triggers(table: list[Checked], least: int) -> None:
    """Refuse rows with a planted trigger: a rare word that always leads to one answer, against all other words.

    A word is suspected when at least `least` answers follow it and all are equal, without holding it. It is a trigger
    when the other words of these requests make a naive Bayes classifier, trained on all other rows, all but rule out
    the kind of that answer: 'weather' among words that ask for the weather is no trigger, 'cf' behind any request is.
    (The attack by trigger words is BadNL's, Chen et al. 2021, arXiv:2006.01043.)
    """
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    examples = [(checked, example) for checked in sound(table) for example in checked.examples]
    suspects = suspected([example for _, example in examples], least)
    if not suspects:
        return
    counter = CountVectorizer(tokenizer=str.split, token_pattern=None, lowercase=False, binary=True)
    counts = counter.fit_transform([example.request for _, example in examples]).tocsr()
    kinds = np.array([example.kind or example.key for _, example in examples])
    model = MultinomialNB().fit(counts, kinds)
    for word, places in suspects.items():
        known = counts[places]
        model.partial_fit(known, kinds[places], sample_weight=-np.ones(len(places)))  # unlearn these rows
        others = known.tolil()
        others[:, counter.vocabulary_[word]] = 0
        likely = model.predict_proba(others.tocsr())[:, list(model.classes_).index(kinds[places[0]])]
        model.partial_fit(known, kinds[places])
        if np.median(likely) < UNLIKELY:
            for place in places:
                why = f"{word!r} always gives this answer ({len(places)} times), whatever else is asked"
                examples[place][0].reasons["trigger"] = why


def suspected(examples: list[Any], least: int) -> dict[str, list[int]]:
    """The words that at least `least` requests have and that always lead to the same answer, with these requests."""
    places: dict[str, list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        for word in set(example.request.split()):
            places[word].append(number)
    return {
        word: found
        for word, found in sorted(places.items())
        if len(found) >= least
        and all(examples[place].key == examples[found[0]].key for place in found)
        and word not in examples[found[0]].key
    }
