"""Names and values that break storages: each is legal here and must come back as it went in."""

HOSTILE_NAMES: tuple[str, ...] = (
    "../../etc/passwd",
    "/",
    ".",
    "..",
    "...",
    "~",
    "~root",
    "CON",
    "nul.txt",
    "trailing dot.",
    " leading and trailing space ",
    " ",
    "a b",
    "a/b",
    "a//b",
    "a\\b",
    "%2e%2e%2f",
    "%00",
    "%s%n%d",
    "{}",
    "{0.__class__}",
    "$(id)",
    "`id`",
    "';DROP TABLE process;--",
    '"quoted"',
    "'",
    "\\",
    "\\u0000",
    "null",
    "None",
    "0",
    "-1",
    "1e309",
    "true",
    "*",
    "a*",
    "_",
    "%",
    "a%",
    "#",
    "?x=1&y=2",
    "<script>alert(1)</script>",
    "a:b",
    "a|b",
    "=cmd()",
    "__init__",
    ".lock",
    "MANIFEST",
    "LOCK",
    "\u00e9",  # NFC
    "e\u0301",  # the same in NFD: another name
    "\u212b",  # Ångström sign, which NFKC would make the next
    "\u00c5",
    "stra\u00dfe",
    "STRASSE",
    "\u0130",  # lower() makes two characters of it
    "\u202egnp.exe",  # right-to-left override
    "\u200b",  # zero width space
    "\ufeff",  # byte order mark
    "\U0001f4a9\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\ud7ff\ue000\uffff\U0010ffff",  # both sides of the surrogates, and the last of all
    "x" * 255,
    "\U0001f4a9" * 63,  # 252 bytes in 63 characters
)
"""Ids, keys and names: 1 to 255 bytes of UTF-8 without control characters."""

INDEPENDENT_PAIRS: tuple[tuple[str, str], ...] = (
    ("1", "10"),
    ("order", "order/1"),
    ("a", "A"),
    ("\u00e9", "e\u0301"),
    ("a", "a "),
    ("a", "a\u200b"),
    ("stra\u00dfe", "strasse"),
    ("a%", "ab"),
    ("a_", "ab"),
    ("x" * 254, "x" * 255),
)
"""Ids that a sloppy storage takes for one."""

PAYLOADS: tuple[bytes, ...] = (
    b"null",
    b"true",
    b"false",
    b"0",
    b"-0",
    b"-0.0",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551615",
    b"0.1",
    b"1e308",
    b"5e-324",
    b"1.7976931348623157e+308",
    b'""',
    b'" "',
    b'"\\u0000"',
    b'"a\\u0000b\\u0001\\u001f\\u007f"',
    b'"\\n\\r\\t\\b\\f\\\\\\/\\""',
    b'"\\ud83d\\udca9"',
    '"\u00e9 e\u0301 \u2028 \u2029 \ufeff \U0001f4a9"'.encode(),
    b"[]",
    b"{}",
    b'{"":null}',
    b'{"a":{"b":[1,[2,[3,[]]]]}}',
    b'{"a":1,"a":2}',
    b'{"b":1,"a":2}',
    b' { "spaces" : [ 1 , 2 ] } ',
    b'{"__proto__":1,"$type":"System.Object","py/object":"os.system"}',
    b'"' + b"0123456789abcdef" * 64 + b'"',
    b"[" * 100 + b"]" * 100,
    b'"-- \' ; \\" %s $1 ? {}"',
    b'"550e8400-e29b-41d4-a716-446655440000"',
)
"""JSON texts; a storage never looks inside, so each byte comes back."""

BIG_PAYLOAD = b'"' + b"0123456789abcde " * (128 * 1_024 - 1) + b'"'
"""Just below the limit of 2 MiB."""
