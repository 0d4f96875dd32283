"""Hook of the documentation site: a link to a file of the repository that is no page becomes the file's name."""

import re

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+((?!docs/)[\w./-]+?)(?:#[\w-]+)?\)")


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Replaces `[text](../../file)` by `text (file)` where the target lies outside docs/."""

    def told(match: re.Match) -> str:
        depth = match[0].count("../")
        inside = depth <= page.file.src_uri.count("/")
        return match[0] if inside else f"{match[1]} (`{match[2]}`)"

    return _OUTSIDE.sub(told, markdown)
