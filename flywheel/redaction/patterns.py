r"""What personal data and secrets look like, and where they stand in a text.

Patterns only propose; checksums decide where a format has one (Luhn for cards, mod 97 for IBANs),
and words that name another thing ("order", "version", "ISBN") speak against what follows them.
Bare digit runs are nothing until a word or a JSON key says what they are. Every repeat is bounded,
so no text makes a pattern slow.

Each kind also has hints: what a text must contain at the least to hold one of it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """Characters ``start`` to ``end`` of a text, and the kind of personal data they are."""

    start: int
    end: int
    kind: str


Hit = re.Match[str]


def _end(hit: Hit) -> int:
    return hit.end(hit.lastgroup or 0)


@dataclass(frozen=True)
class Kind:
    """One look of one kind of personal data."""

    name: str
    pattern: re.Pattern[str]
    """The value is its group ``value``, or the whole hit where there is none."""
    hints: tuple[str, ...]
    """Regular expressions in RE2's syntax; a hit of ``pattern`` contains a hit of one of them."""
    end: Callable[[Hit], int] = _end
    """Where the value ends; 0 if the hit is no such value."""

    def spans(self, text: str) -> Iterator[Span]:
        """Where its values stand, in order."""
        for hit in self.pattern.finditer(text):
            if end := self.end(hit):
                yield Span(hit.start(hit.lastgroup or 0), end, self.name)


# ------------------------------------------------------------------ parts of patterns and hints

_ESCAPE = r"\\[bfnrt]|\\u[0-9A-Fa-f]{4}"
"""Hints: in the JSON text of a value this may stand right before a word."""
WORD = rf"(?:\b|{_ESCAPE})"
"""Hints: a word begins here."""
NUMBER = rf"(?:^|[^\w.+-]|{_ESCAPE})"
"""Hints: a number begins here."""
_SAYS = r"""(?:[A-Za-zèéは是_ .:：,=#("'\\+-]|\\+u[0-9A-Fa-f]{4}){0,36}"""
"""Hints: what may stand between a label and its value, as plain text or in JSON."""


def _cased(words: str) -> str:
    """The words in lower case, capitalised and in capitals: quicker than ignoring case."""
    forms = {form for word in words.split() for form in (word, word.capitalize(), word.upper())}
    return "|".join(sorted(forms))


def _escaped(words: str) -> str:
    """Hints: the words, their letters beyond ASCII also as JSON may write them."""
    return re.sub(r"[^\0-\x7f]", lambda c: rf"(?:{c[0]}|\\+u(?i:{ord(c[0]):04x}))", words)


_OTHERWISE = re.compile(
    r"""(?<![a-z])(?:id|(?:customer|member)[ _-](?:number|no\.?)|(?:order|invoice|ticket|case|claim
      |part|model|serial|sku|isbn|issn|ean|upc|gtin|imei|tracking|parcel|shipment|product|item
      |ref|reference|booking|policy|contract|account|article|ein|lot|batch|build|trace
      |bestellung|rechnung|artikel|commande|facture|pedido|factura)
      (?:[ _-]?(?:numbers?|code|id|no\.?|nr\.?|n[°º]))?)(?:[ ](?:is|was))?[ :#="]{0,4}\Z""",
    re.VERBOSE | re.IGNORECASE,
)
"""What these name is neither a phone number nor a card."""
_VERSION = re.compile(
    r"""(?:(?:version|(?<![a-z])(?:ver\.?|v|release|firmware|fw|driver|build|kernel|revision|section
      |sect\.?|chapter|clause|paragraph|figure|table|§|oid))
      (?:[ ](?:is|was))?[ "]{0,2}[:=]?[ "]{0,2}|[a-z][-/]|==|[<>~]=)\Z""",
    re.VERBOSE | re.IGNORECASE,
)


def _follows(words: re.Pattern[str], hit: Hit) -> bool:
    """Whether the words stand right before the value."""
    start = hit.start(hit.lastgroup or 0)
    return words.search(hit.string, max(0, start - 40), start) is not None


# ------------------------------------------------------------------ URLs with credentials, e-mail

_URL = re.compile(
    r"""(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,30}://
      (?P<value>[^\s/?#"'<>\\:@]{0,128}:[^\s/?#"'<>\\]{1,256})@(?=[\w\[])""",
    re.VERBOSE,
)
_URL_HINT = r":(?:\\*/){2}[^\s/@:]*:[^\s/]*@"

_L = r"A-Za-z0-9_\u00c0-\u0dff"
"""Letters of the scripts that put spaces between words: others run on into an address."""
_EMAIL = re.compile(
    rf"""(?<![{_L}.+%-])
      (?:"[^"\s][^"\n]{{0,62}}"|(?:[ODod]['’])?[{_L}.+%-]{{1,64}})
      @(?!\dx\.|v?\d+\.\d)(?:[{_L}](?:[{_L}-]{{0,61}}[{_L}])?\.){{1,8}}
      (?:xn--[A-Za-z0-9-]{{1,59}}|(?:(?![\d_])[{_L}]){{2,24}})(?![{_L}])""",
    re.VERBOSE,
)
_TLD = "com|org|net|edu|gov|info|io|ai|co|eu|uk|de|fr|es|it|nl|ch|at|in"
_SPELLED = re.compile(
    rf"""(?<![{_L}.+%-])(?:
      [{_L}.+%-]{{1,64}}[ ]?[\[(][ ]?(?:at|AT|@)[ ]?[\])][ ]?[{_L}-]{{1,63}}
        (?:(?:\.|[ ]?[\[(][ ]?(?:dot|DOT|\.)[ ]?[\])][ ]?)[{_L}-]{{2,63}}){{1,4}}
      |[{_L}-]{{1,64}}(?:[ ](?:dot|DOT)[ ][{_L}-]{{1,64}}){{0,3}}[ ](?:at|AT)[ ]
        [{_L}-]{{1,63}}(?:[ ](?:dot|DOT)[ ][{_L}-]{{1,63}}){{0,2}}[ ](?:dot|DOT)[ ](?:{_TLD})
      )(?![{_L}])""",
    re.VERBOSE,
)


def _address(hit: Hit) -> int:
    """git@host: is how one reaches a repository, not a person."""
    return 0 if hit[0].startswith("git@") else hit.end()


# ------------------------------------------------------------------ keys and tokens

_TOKENS = (
    r"sk-[\w-]{16,250}",  # OpenAI, Anthropic, OpenRouter and others
    r"nvapi-[\w-]{16,250}",  # NVIDIA
    r"AIza[\w-]{35}",  # Google, as the next two
    r"GOCSPX-[\w-]{20,60}",
    r"ya29\.[\w.-]{20,1000}",
    r"(?:AKIA|ASIA)[0-9A-Z]{16}\b",  # AWS
    r"gh[pousr]_[A-Za-z0-9]{36,255}",  # GitHub
    r"github_pat_\w{22,255}",
    r"gl(?:pat|dt|rt|ptt|cbt|ft|agent|imt|oas)-[\w-]{16,255}(?:\.[\w.-]{2,40})?",  # GitLab
    r"xox[abceoprs](?:\.xox[bp])?-[\w-]{10,250}",  # Slack
    r"xapp-[\w-]{10,250}",
    r"[rs]k_(?:live|test)_\w{16,250}",  # Stripe
    r"whsec_[\w+/=]{16,100}",
    r"hf_[A-Za-z0-9]{30,60}",  # Hugging Face
    r"SG\.[\w-]{16,32}\.[\w-]{16,64}",  # SendGrid
    r"SK[0-9a-f]{32}\b",  # Twilio
    r"npm_[A-Za-z0-9]{36}\b",
    r"pypi-[\w-]{50,500}",
    r"\w{3}\dQ~[\w.~-]{31,34}",  # Azure
    r"dapi[0-9a-f]{32}\b",  # Databricks
    r"do[opr]_v1_[0-9a-f]{64}",  # DigitalOcean
    r"gsk_\w{40,80}",  # Groq
    r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",  # Shopify
    r"\d{8}\d?\d?:AA[\w-]{30,40}",  # Telegram
    r"hv[bs]\.[\w-]{20,250}",  # Vault
    r"(?:xai|pplx|tvly|PMAK|NRAK|r8|ntn|fw|glsa|sntrys|figd|pcsk|lin_api|lsv2_pt|dckr_pat)"
    r"[-_][\w-]{24,250}",
    r"(?:sk\.|pk\.)?eyJ[\w-]{10,4000}\.[\w-]{10,4000}(?:\.[\w-]{0,1000}){0,3}",  # JWT
)
_SECRET = re.compile(
    rf"""(?<![A-Za-z0-9_])(?!sk-[a-z]{{1,40}}(?:-[a-z]{{1,40}}){{1,20}}(?![\w-]))(?:
      {"|".join(_TOKENS)}
    | -----BEGIN[ A-Z]{{1,40}}PRIVATE[ ]KEY-----(?:[A-Za-z0-9+/=\s\\:,]|-(?!----)){{0,8000}}
      (?:-----END[ A-Z]{{1,40}}-----)?
    )""",
    re.VERBOSE | re.ASCII,
)


def _beginning(token: str) -> str:
    """Hint for a token: up to the least length of its first part of open length."""
    opened = re.search(r"\{(\d+),\d+\}", token)
    start = f"{token[: opened.start()]}{{{opened[1]}}}" if opened else token.removesuffix(r"\b")
    return start if start.startswith("\\") else WORD + start


_WEBHOOK = re.compile(r"hooks\.slack\.com/services/(?P<value>T\w{8,12}/B\w{8,12}/\w{20,30})")

_KEY_WORDS = _cased("key keys token tokens secret")
_LABELLED = re.compile(
    rf"""(?:(?i:api|access|account|auth|client|private|secret|shared|signing|subscription|bot|user)
        [ _-]?(?i:access[ _-]?)?(?:{_KEY_WORDS})
        |{_cased("secret token bearer")}|(?<=[A-Z]_)KEY|(?<=[?&])sig)
      ["'\]]{{0,2}}[ \t]{{0,3}}(?:[:=]{{1,2}}>?|is|was)?[ \t]{{0,3}}["'(]{{0,2}}(?<![A-Za-z0-9_-])
      (?P<value>(?=[A-Za-z+/_=.~%-]{{0,250}}\d)(?=[\d+/_=.~%-]{{0,250}}[A-Za-z])
        [A-Za-z0-9+/_.~%-]{{16,512}}={{0,2}})""",
    re.VERBOSE | re.ASCII,
)
_LABELLED_HINT = (
    rf"(?:{_KEY_WORDS}|{_cased('bearer')}|sig)"
    r"""[\\"'\]\s:=>istwa(]{1,24}[\w+/.~%\\-]{16}"""
)

# ------------------------------------------------------------------ accounts


def _card(hit: Hit) -> int:
    """Luhn's checksum, ISO/IEC 7812-1."""
    digits = [int(c) for c in reversed(hit[0]) if c.isdecimal()]
    doubled = (sum(divmod(2 * d, 10)) for d in digits[1::2])
    fits = (sum(digits[::2]) + sum(doubled)) % 10 == 0
    return hit.end() if fits and not _follows(_OTHERWISE, hit) else 0


_CARD = re.compile(
    r"""(?<![\w.+-])(?:
      (?:4\d{3}|5[0-8]\d{2}|2[2-7]\d{2}|6\d{3}|35\d{2})([ .-]?)\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?
    | 4\d{12} | 3[47]\d{2}([ -]?)\d{6}\2\d{5} | 3[0689]\d{2}([ -]?)\d{6}\3\d{4}
    )(?![\w-]|\.\d)""",
    re.VERBOSE | re.ASCII,
)
_CARD_HINT = NUMBER + r"[2-6]\d{3}(?:[ .-]?\d){9}"


def _iban(hit: Hit) -> int:
    """Mod 97 of ISO 13616; the hit may run on into the next words, so shorter ends are tried."""
    ends = [m.start() for m in re.finditer(r"[ -]|\Z", hit[0])]
    for end in reversed(ends):
        plain = re.sub(r"[ -]", "", hit[0][:end]).upper()
        number = "".join(str(int(c, 36)) for c in plain[4:] + plain[:4])
        if 15 <= len(plain) <= 34 and int(number) % 97 == 1:
            return hit.start() + end
    return 0


_COUNTRIES = (
    "A[DELTZ]|B[AEGHIRY]|C[HRYZ]|D[EJKO]|E[EGS]|F[IKOR]|G[BEILRT]|H[NRU]|I[ELQST]|JO|K[WZ]|L[BCITUVY]"
    "|M[CDEKNRTU]|N[ILO]|OM|P[KLST]|QA|R[OSU]|S[ACDEIKMOTV]|T[LNR]|UA|V[AG]|XK|YE"
)
"""Of the IBAN registry of SWIFT, and those about to join."""
_IBAN_COUNTRY = f"(?:{_COUNTRIES}|{_COUNTRIES.lower()})"
_IBAN = re.compile(
    rf"""(?<![A-Za-z0-9_]){_IBAN_COUNTRY}\d{{2}}
      (?:[ -]?[A-Za-z0-9]{{4}}){{2,7}}(?:[ -]?[A-Za-z0-9]{{1,3}})?(?![A-Za-z0-9])""",
    re.VERBOSE | re.ASCII,
)
_IBAN_HINT = WORD + _IBAN_COUNTRY + r"\d{2}(?:[ -]?[A-Za-z0-9]){11}"


def _ssn(hit: Hit) -> int:
    return 0 if _follows(_OTHERWISE, hit) else hit.end()


_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])", re.ASCII)
_SSN_WORDS = _cased("ssn soc social taxpayer")
_SAID_SSN = re.compile(
    rf"""(?<![A-Za-z])(?:{_SSN_WORDS})\.?(?:[ _](?i:sec(?:urity|\.)?))?(?:[ _](?i:number|no\.?|id))?
      [ \#:=("'-]{{0,4}}(?:is[ ]{{1,2}})?
      (?P<value>(?!000|666|9)\d{{3}}[ -]?(?!00)\d{{2}}[ -]?(?!0000)\d{{4}})(?![\w-])""",
    re.VERBOSE | re.ASCII,
)
_SAID_SSN_HINT = rf"(?:{_SSN_WORDS}){_SAYS}\d{{3}}[ -]?\d{{2}}[ -]?\d{{4}}"

# ------------------------------------------------------------------ IP addresses


def _ipv4(hit: Hit) -> int:
    try:
        address = ipaddress.IPv4Address(hit[0])
    except ValueError:
        return 0
    nobody = address.is_loopback or hit[0].startswith(("0.", "255."))
    return 0 if nobody or _follows(_VERSION, hit) else hit.end()


def _ipv6(hit: Hit) -> int:
    """What lies outside the address space in use (code, MAC addresses, loopback) is none."""
    try:
        address = ipaddress.IPv6Address(hit[0])
    except ValueError:
        return 0
    return hit.end() if address.ipv4_mapped or not address.is_reserved else 0


_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|-[A-Za-z]|\.\w)", re.ASCII)
_IPV6 = re.compile(
    r"""(?<![\w.])(?<![0-9A-Fa-f:]:)(?:[23Ff][0-9A-Fa-f]{3}:|::[Ff]{4}:)
      (?:[0-9A-Fa-f]{0,4}:){0,6}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4})(?![\w:])""",
    re.VERBOSE | re.ASCII,
)
_IPV6_HINTS = (r"[23Ff][0-9A-Fa-f]{3}:[0-9A-Fa-f]{0,4}:", r"::[Ff]{4}:")

# ------------------------------------------------------------------ phone numbers

_DATE = re.compile(
    r"(?:19|20)\d\d[-./ ](?:0?[1-9]|1[0-2])[-./ ][0-3]?\d(?!\d)"
    r"|[0-3]?\d[-./ ][0-3]?\d[-./ ](?:19|20)\d\d(?!\d)"
)
_DECIMAL = re.compile(r"\+\d{1,3}\.\d{4,7}")


def _phone(hit: Hit) -> int:
    value = hit[hit.lastgroup or 0]
    if not 7 <= sum(c.isdecimal() for c in value) <= 15:
        return 0
    other = _DATE.match(value) or _DECIMAL.fullmatch(value)
    named_otherwise = not value.startswith("+") and _follows(_OTHERWISE, hit)
    return 0 if other or named_otherwise else _end(hit)


_PHONE = re.compile(
    r"""(?<![\w.+-])(?:
      \+1[ .-]?\(?[2-9]\d{2}\)?[ .-]{0,2}\d{3}[ .-]?\d{4}                # +1 415 555 0142
    | \+[1-9](?:[ ().\-/]{0,2}\d){7,14}                                  # +49 30 1234567
    | (?<!\d[ -])00[ ]?[1-9]\d{0,2}(?:[ ./-]\d{1,8}){2,6}                # 0049 30 1234567
    | (?:1[ .-])?(?:\([2-9]\d{2}\)[ ]?|[2-9]\d{2}[ .-])\d{3}[ .-]\d{4}   # (415) 555-0142
    | 0[1-9](?:[ .-]\d{2}){4}                                            # 01 23 45 67 89
    | \(\d{2}\)[ ]?9?\d{4}-\d{4}                                         # (11) 91234-5678
    | 8[ -]\(?9\d{2}\)?[ -]\d{3}[ -]\d{2}[ -]\d{2}                       # 8 (912) 345-67-89
    | 1[3-9]\d[ -]\d{4}[ -]\d{4}                                         # 138 0013 8000
    | (?<!/)(?<!\d[ -])(?=(?:[ ()/-]{0,3}\d){9,13}(?!\d))                # 030 1234567
      \(?0[1-9]\d{0,4}\)?[ ]?[ /-][ ]?\d{3,8}(?:[ -]\d{2,8}){0,3}(?!/\d)
    )(?![\w-]|[.:]\d)""",
    re.VERBOSE | re.ASCII,
)
_PHONE_HINTS = (
    r"\+[1-9](?:[ ().\-/]{0,3}\d){7}",
    NUMBER + r"00[ ]?[1-9]\d{0,2}[ ./-]\d{1,8}[ ./-]\d",
    NUMBER + r"(?:1[ .-])?\(?[2-9]\d{2}(?:[ .-]|\) ?)\d{3}[ .-]\d{4}",
    NUMBER + r"0[1-9](?:[ .-]\d{2}){4}",
    NUMBER + r"\(\d{2}\) ?9?\d{4}-\d{4}",
    NUMBER + r"8[ -]\(?9\d{2}\)?[ -]\d{3}[ -]\d{2}[ -]\d{2}",
    NUMBER + r"1[3-9]\d[ -]\d{4}[ -]\d{4}",
    NUMBER + r"\(?0[1-9]\d{0,4}\)? ?(?:\\*/|[ -]) ?\d{3}",
)
_NOUNS = "|".join(
    (
        _cased("phone phones tel telefon telephone telefono telefone telefoon mobile mobil mobiel"),
        _cased("cell cellulare celular handy portable whatsapp fax rufnummer gsm tlf tfno puh"),
        _cased("téléphone teléfono móvil telemóvel телефон"),
        "WhatsApp|[Mm](?:y|eine|ijn)[ ][Nn]um(?:b|m)er|手机|电话|電話|携帯|전화|번호",
    )
)
_SAID_PHONE = re.compile(
    rf"""(?:(?<![A-Za-z])|(?=[A-Z]))(?:{_NOUNS})
      [A-Za-z]{{0,8}}(?:[ _](?:number|no|nr))?(?:\d(?=\D))?
      [ .:：,=\#"']{{0,4}}(?:(?:is|ist|es|est|is[ ]now|at|on|under|unter|è|é|は|是|to)[ :]{{1,2}})?
      (?P<value>\+?\(?\d(?:[ .\-/()]{{0,3}}\d){{6,14}})(?![\w-]|[.:/]\d)""",
    re.VERBOSE | re.ASCII,
)
_VERBS = _cased("call text ring dial reach sms phone")
_ASKED_PHONE = re.compile(
    rf"""(?<![A-Za-z0-9_])(?:{_VERBS})(?:[ ][A-Za-z]{{1,10}}){{0,3}}[ :]{{1,2}}
      (?P<value>\d(?:[ .\-/()]{{0,3}}\d){{9,14}})(?![\w-]|[.:/]\d)""",
    re.VERBOSE | re.ASCII,
)
_DIGITS = r"\d(?:[ .\-/()\\]{0,7}\d)"
_SAID_PHONE_HINT = rf"(?:{_escaped(_NOUNS)})(?:{_SAYS}\d)?{_SAYS}{_DIGITS}{{6}}"
_ASKED_PHONE_HINT = rf"{WORD}(?:{_VERBS})(?: [A-Za-z]{{1,10}}){{0,3}}[ :\\\"]{{1,10}}{_DIGITS}{{9}}"

# ------------------------------------------------------------------ all together

KINDS = (
    Kind("URL_CREDENTIALS", _URL, (_URL_HINT,)),
    Kind("API_KEY", _SECRET, (*map(_beginning, _TOKENS), "PRIVATE KEY-----")),
    Kind("API_KEY", _WEBHOOK, (r"hooks\.slack\.com",)),
    Kind("API_KEY", _LABELLED, (_LABELLED_HINT,)),
    Kind("EMAIL", _EMAIL, (r"@(?:[^\s@.]+\.)+[^\s\d.]",), _address),
    Kind("EMAIL", _SPELLED, (r"[\[(] ?(?:at|AT|@) ?[\])]", f" (?:dot|DOT) (?:{_TLD})")),
    Kind("IBAN", _IBAN, (_IBAN_HINT,), _iban),
    Kind("CARD", _CARD, (_CARD_HINT,), _card),
    Kind("SSN", _SSN, (r"\d{3}-\d{2}-\d{4}",), _ssn),
    Kind("SSN", _SAID_SSN, (_SAID_SSN_HINT,)),
    Kind("IP", _IPV6, _IPV6_HINTS, _ipv6),
    Kind("IP", _IPV4, (r"\d\.\d{1,3}\.\d{1,3}\.\d",), _ipv4),
    Kind("PHONE", _PHONE, _PHONE_HINTS, _phone),
    Kind("PHONE", _SAID_PHONE, (_SAID_PHONE_HINT,), _phone),
    Kind("PHONE", _ASKED_PHONE, (_ASKED_PHONE_HINT,), _phone),
)
"""In order of precedence: what one has found, the next ones do not see."""
