"""Families `files` and `addresses`: parts and changes of file paths, mail addresses and web addresses."""

from __future__ import annotations

import random
from collections.abc import Mapping

from training.tasks.procedural.recipes import Family, Inputs, bind
from training.tasks.procedural.words import CATEGORIES, COUNTABLE, FIRST_NAMES, LAST_NAMES

Parts = Mapping[str, str]

_FOLDERS = ("photos", "work", "music", "drafts", "school", "backup", "shared", "travel", "recipes", "old")
_KINDS = {
    "picture": ("png", "jpg", "gif"),
    "document": ("pdf", "docx", "txt"),
    "audio": ("mp3", "wav", "ogg"),
    "code": ("py", "js", "c"),
}
_NOUNS = tuple(word for name in COUNTABLE for word in CATEGORIES[name] if word.isalpha())
_HOSTS = ("mail", "web", "post", "box", "hub", "park", "lake", "shop", "desk", "north")
_ENDS = ("com", "org", "net", "io", "eu")


def _draw_file(rng: random.Random, test: bool) -> tuple[str, Parts]:
    kind = rng.choice(sorted(_KINDS))
    parts = {
        "folder": rng.choice(_FOLDERS),
        "stem": rng.choice(_NOUNS) + rng.choice(("", "", "1", "2", "3")),
        "ext": rng.choice(_KINDS[kind]),
        "kind": kind,
    }
    return "{folder}/{stem}.{ext}".format(**parts), parts


def _draw_mail(rng: random.Random, test: bool) -> tuple[str, Parts]:
    parts = {
        "first": rng.choice(FIRST_NAMES).lower(),
        "last": rng.choice(LAST_NAMES).lower(),
        "host": rng.choice(_HOSTS),
        "end": rng.choice(_ENDS),
    }
    return "{first}.{last}@{host}.{end}".format(**parts), parts


def _draw_web(rng: random.Random, test: bool) -> tuple[str, Parts]:
    parts = {
        "scheme": rng.choice(("http", "https")),
        "host": rng.choice(_HOSTS),
        "end": rng.choice(_ENDS),
        "page": rng.choice(_NOUNS),
        "part": rng.choice(_FOLDERS),
    }
    return "{scheme}://{host}.{end}/{part}/{page}".format(**parts), parts


FILE = Inputs("file", "the path of a file|a file's path|a path like folder/name.txt", _draw_file)
MAIL = Inputs("mail", "an email address|the address of a mailbox", _draw_mail)
WEB = Inputs("web", "a web address|the URL of a page", _draw_web)


def files() -> Family:
    """Input: the path of a file. Answer: a part of it, or a changed path."""
    family = Family("files", FILE)
    for name, form, do, give in (
        ("extension", "{ext}", "give the extension of the file without the dot", "the file's extension"),
        ("dotted", ".{ext}", "give the extension of the file with its dot", "the dot and the extension of the file"),
        ("file_name", "{stem}.{ext}", "remove the folder from the path", "the file name without its folder"),
        ("stem", "{stem}", "give the file name without folder and extension", "the bare name of the file"),
        ("folder", "{folder}", "say in which folder the file is", "the folder of the path"),
        ("no_extension", "{folder}/{stem}", "remove the extension from the path", "the path up to the dot"),
        ("to_zip", "{folder}/{stem}.zip", "change the extension of the path to zip", "the path with the extension zip"),
        ("to_md", "{folder}/{stem}.md", "change the extension of the path to md", "the path with the extension md"),
        ("to_html", "{folder}/{stem}.html", "change the extension of the path to html", "the path ending in html"),
        ("with_gz", "{folder}/{stem}.{ext}.gz", "add gz as a second extension", "the path with .gz put at its end"),
        (
            "bak",
            "{folder}/{stem}.{ext}.bak",
            "name the backup of the file, which has bak at its end",
            "the path with .bak at its end",
        ),
        (
            "copy",
            "{folder}/{stem}_copy.{ext}",
            "name a copy of the file, with _copy before the dot",
            "the path of the copy",
        ),
        (
            "final",
            "{folder}/{stem}-final.{ext}",
            "put -final before the dot of the path",
            "the path of the final version",
        ),
        ("to_tmp", "tmp/{stem}.{ext}", "move the file to the folder tmp", "the path of the file inside of tmp"),
        (
            "to_archive",
            "archive/{folder}/{stem}.{ext}",
            "put the whole path below the folder archive",
            "archive/ and the path",
        ),
        ("windows", "{folder}\\{stem}.{ext}", "write the path with a backslash", "the path as Windows writes it"),
        ("relative", "./{folder}/{stem}.{ext}", "put ./ in front of the path", "the path beginning with ./"),
        ("hidden", "{folder}/.{stem}.{ext}", "hide the file by a dot before its name", "the path of the hidden file"),
        ("glob", "{folder}/*.{ext}", "replace the file's name by a star", "a pattern for all such files of the folder"),
        ("sibling", "{folder}/index.html", "name the file index.html in the same folder", "index.html beside the file"),
    ):
        family.open(name, bind(form, lambda p, form: form.format(**p)), do, give)
    family.labelled(
        "kind",
        lambda p: p["kind"],
        "tell from the extension what kind of file it is|sort the file by its extension",
        "the kind of content that the extension stands for",
        tuple(_KINDS),
    )
    for kind in ("picture", "document", "audio"):
        endings = _KINDS[kind]
        family.asks(
            f"is_{kind}",
            bind(kind, lambda p, kind: p["kind"] == kind),
            f"the extension of the file is one of {', '.join(endings)}",
            f"Is the extension of the file one of {', '.join(endings)}?|Does the path end in {' or '.join(endings)}?",
        )
    family.asks(
        "numbered",
        lambda p: p["stem"][-1].isdigit(),
        "the file name has a digit before the dot|the name of the file ends with a number",
        "Does the file name have a digit before the dot?|Does the name of the file end with a number?",
    )
    return family


def addresses() -> Family:
    """Input: a mail or web address. Answer: a part of it, or a changed address."""
    family = Family("addresses", WEB)
    for name, inputs, form, do, give in (
        ("mail_user", MAIL, "{first}.{last}", "give what stands before the @", "the user part of the mail address"),
        ("mail_host", MAIL, "{host}.{end}", "give the domain of the mail address", "everything after the @"),
        (
            "mail_end",
            MAIL,
            "{end}",
            "give the part after the last dot of the mail address",
            "the mail address's last part",
        ),
        (
            "mail_first",
            MAIL,
            "{first}",
            "give the first name in the mail address, as written",
            "the owner's first name in small letters",
        ),
        (
            "mail_last",
            MAIL,
            "{last}",
            "give the last name in the mail address, as written",
            "the owner's last name in small letters",
        ),
        (
            "mail_name",
            MAIL,
            "{First} {Last}",
            "write the name of the mailbox owner with capitals",
            "first and last name of the owner",
        ),
        (
            "mail_masked",
            MAIL,
            "***@{host}.{end}",
            "hide the user of the mail address by ***",
            "the address with *** before @",
        ),
        (
            "mail_spoken",
            MAIL,
            "{first}.{last} at {host}.{end}",
            "write the mail address with at for the @",
            "the mail address with at in place of @",
        ),
        (
            "mail_link",
            MAIL,
            "mailto:{first}.{last}@{host}.{end}",
            "turn the mail address into a mailto link",
            "the mail address as a mailto link",
        ),
        (
            "mail_info",
            MAIL,
            "info@{host}.{end}",
            "give the info address at the same mail domain",
            "info@ and the domain",
        ),
        ("web_host", WEB, "{host}.{end}", "give the host of the web address", "the host name in the URL"),
        ("web_scheme", WEB, "{scheme}", "give what stands before :// in the web address", "the scheme of the URL"),
        ("web_page", WEB, "{page}", "give the last part of the web address", "what follows the last slash of the URL"),
        ("web_path", WEB, "/{part}/{page}", "give the path of the web address with its slashes", "the path of the URL"),
        ("web_end", WEB, "{end}", "give the top-level domain of the web address", "the URL's top-level domain, no dot"),
        (
            "web_root",
            WEB,
            "{scheme}://{host}.{end}",
            "cut the web address off after the host",
            "the URL without its path",
        ),
        (
            "web_bare",
            WEB,
            "{host}.{end}/{part}/{page}",
            "remove the scheme from the web address",
            "the URL without ://",
        ),
        (
            "web_secure",
            WEB,
            "https://{host}.{end}/{part}/{page}",
            "write the web address with https",
            "the web address as an https URL",
        ),
        (
            "web_up",
            WEB,
            "{scheme}://{host}.{end}/{part}",
            "go one level up in the web address",
            "the URL of the level above",
        ),
    ):
        family.open(name, bind(form, _address), do, give, inputs=inputs)
    family.asks(
        "web_is_secure",
        lambda p: p["scheme"] == "https",
        "the web address starts with https|the URL is a secure one",
        "Does the web address start with https?|Is the URL a secure one?",
    )
    family.asks(
        "mail_is_com",
        lambda p: p["end"] in ("com", "net"),
        "the mail address ends in com or net",
        "Does the mail address end in com or net?",
        inputs=MAIL,
    )
    return family


def _address(parts: Parts, form: str) -> str:
    names = {key.capitalize(): value.capitalize() for key, value in parts.items()}
    return form.format(**parts, **names)
