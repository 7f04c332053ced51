"""Families `names` and `people`: a full name in many forms, and lines with a person's data."""

from __future__ import annotations

import random
from collections.abc import Mapping

from training.tasks.procedural.recipes import Family, Inputs, bind
from training.tasks.procedural.words import CATEGORIES, CITIES, FIRST_NAMES, LAST_NAMES

Name = tuple[str, str]
Person = Mapping[str, str]


def _draw(rng: random.Random, test: bool) -> tuple[str, Name]:
    first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
    return f"{first} {last}", (first, last)


def _draw_person(rng: random.Random, test: bool) -> tuple[str, Person]:
    person = {
        "name": rng.choice(FIRST_NAMES),
        "age": str(rng.randint(18, 79)),
        "city": rng.choice(CITIES),
        "job": rng.choice(CATEGORIES["job"]),
    }
    return "; ".join(f"{key}: {value}" for key, value in person.items()), person


NAME = Inputs("name", "a person's full name|a first name and a last name|the name of a person", _draw)
PERSON = Inputs("person", "a line with a person's data|one record with name, age, city and job", _draw_person)


def names() -> Family:
    """Input: a first and a last name. Answer: another form of the name."""
    family = Family("names", NAME)
    for name, form, do, give in (
        ("first", "{first}", "give the person's first name", "the first name alone"),
        ("last", "{last}", "give the person's last name", "the last name alone"),
        ("swapped", "{last} {first}", "put the last name of the person in front", "the last name, then the first name"),
        (
            "index",
            "{last}, {first}",
            "write the name as in an index, last name first with a comma",
            "the name in the form Last, First",
        ),
        ("initials", "{f}{l}", "give the initials of the person without dots", "the two initials as two capitals"),
        ("dotted", "{f}.{l}.", "give the initials of the person with dots", "both initials, each with a dot"),
        ("short_first", "{f}. {last}", "shorten the first name to its initial", "the initial, then the last name"),
        ("short_last", "{first} {l}.", "shorten the last name to its initial", "the first name and a last initial"),
        (
            "upper_last",
            "{first} {LAST}",
            "write the last name of the person in capitals",
            "the name, its end in capitals",
        ),
        ("lower", "{lfirst} {llast}", "write the person's name in small letters", "the full name in lower case"),
        (
            "email",
            "{lfirst}.{llast}@example.com",
            "make an address at example.com, with a dot",
            "an address such as ann.lee@example.com",
        ),
        (
            "short_email",
            "{lf}{llast}@example.com",
            "make an address at example.com from initial and last name",
            "an address such as alee@example.com",
        ),
        ("login", "{lf}{llast}", "make a login name: first initial and last name, small", "a login name like jsmith"),
        (
            "login_last",
            "{llast}{lf}",
            "make a login name: last name and first initial, small",
            "a login name like smithj",
        ),
        ("handle", "@{lfirst}_{llast}", "make a handle with @ and an underscore", "a handle like @john_smith"),
        (
            "file",
            "{lfirst}-{llast}.pdf",
            "name a PDF file after the person, with a hyphen",
            "a file name like john-smith.pdf",
        ),
        (
            "dear",
            "Dear {first},",
            "start a letter to the person by the first name",
            "the salutation Dear with first name",
        ),
        (
            "hello",
            "Hello {first}!",
            "greet the person by the first name, with Hello",
            "a greeting with an exclamation mark",
        ),
        ("possessive", "{last}'s", "put the last name of the person into the possessive", "the last name with 's"),
        ("doctor", "Dr. {last}", "address the person as a doctor, by the last name", "the title Dr. and the last name"),
        (
            "signature",
            "- {f}. {l}.",
            "sign with a hyphen and initials, with a space between them",
            "a signature such as - A. L.",
        ),
        (
            "badge",
            "{first} | {LAST}",
            "write a badge: first name, a bar, last name in capitals",
            "first name and capital last name with a bar between",
        ),
    ):
        family.open(name, bind(form, _name_in), do, give)
    family.open(
        "last_letters",
        lambda n: len(n[1]),
        "count the letters of the last name|say how long the person's last name is",
        "the number of letters in the person's last name",
    )
    family.either(
        "longer_part",
        lambda n: len(n[0]) > len(n[1]) if len(n[0]) != len(n[1]) else None,
        "the first name is longer than the last name",
        "the last name is longer than the first name",
        ("first", "last"),
    )
    family.either(
        "queue",
        lambda n: n[1] < "L",
        "the last name starts with a letter from A to K",
        "the last name starts with a letter from L to Z",
        ("desk 1", "desk 2"),
    )
    return family


def people() -> Family:
    """Input: a record of a person. Answer: a field of it, or another form of the record."""
    family = Family("people", PERSON)
    for name, form, do, give in (
        ("name", "{name}", "copy the name from the record", "what stands in the field name"),
        ("age", "{age}", "copy the age from the record", "how old the person is, as a number"),
        ("city", "{city}", "copy the city from the record", "where the person lives"),
        ("job", "{job}", "copy the job from the record", "what the person does for a living"),
        ("name_age", "{name} ({age})", "write the name with the age in parentheses", "name and age, like Anna (30)"),
        ("name_city", "{name}, {city}", "write name and city with a comma between", "name and city of the record"),
        ("row", "{name},{age},{city},{job}", "turn the record into a row of a CSV file", "the values with bare commas"),
        ("city_first", "{city}: {name}", "write the city, a colon and the name", "city and name, like Oslo: Anna"),
        (
            "lives",
            "{name} lives in {city}.",
            "write a sentence on where the person lives",
            "one sentence with the words lives in",
        ),
        (
            "works",
            "{name} works as a {job}.",
            "write a sentence on what the person works as",
            "one sentence with the words works as a",
        ),
        (
            "is",
            "{name} is {age} years old.",
            "write a sentence on the age of the person",
            "one sentence with the words years old",
        ),
        ("json", '{{"name": "{name}"}}', "write the name of the record as JSON", "a JSON object with the key name"),
        ("json_age", '{{"age": {age}}}', "write the age of the record as JSON", "a JSON object with the key age"),
        ("tag", "<job>{job}</job>", "write the job of the record as an XML element", "the job between job tags"),
        ("assign", "city={city}", "write the city as a setting with an equals sign", "the city as city=VALUE"),
    ):
        if name == "works":  # "an electrician" would need another article
            family.open(
                name, bind(form, lambda p, form: None if p["job"][0] in "aeiou" else form.format(**p)), do, give
            )
        else:
            family.open(name, bind(form, lambda p, form: form.format(**p)), do, give)
    for k in (30, 40, 60):
        family.asks(
            f"over_{k}",
            bind(k, lambda p, k: int(p["age"]) > k),
            f"the person in the record is older than {k}",
            f"Is the person in the record older than {k}?|Is the age in the record above {k}?",
        )
    family.open(
        "next_age",
        lambda p: int(p["age"]) + 1,
        "say how old the person of the record will be in a year|add one to the age in the record",
        "the age of the person plus one|the person's age after one more year",
    )
    family.either(
        "ticket",
        lambda p: int(p["age"]) >= 65,
        "the person of the record is 65 or older",
        "the person of the record is younger than 65",
        ("reduced", "full"),
    )
    return family


def _name_in(name: Name, form: str) -> str:
    first, last = name
    return form.format(
        first=first, last=last, f=first[0], l=last[0], LAST=last.upper(),
        lfirst=first.lower(), llast=last.lower(), lf=first[0].lower(),
    )  # fmt: skip
