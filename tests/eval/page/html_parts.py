"""An independent reader of pages: elements with their attributes, text and ancestors."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"img", "meta", "br", "link", "input", "hr", "wbr"}


@dataclass
class Element:
    tag: str
    attributes: dict
    parent: object = None
    children: list = field(default_factory=list)

    @property
    def text(self):
        parts = (c if isinstance(c, str) else c.text for c in self.children)
        return " ".join(" ".join(parts).split())

    def all(self, tag=None, **attributes):
        """All elements inside with this tag and these attributes (`class_` holds the value)."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                own = {**child.attributes, "class_": child.attributes.get("class", "")}
                same = all(
                    value in (own.get(name) or "").split() for name, value in attributes.items()
                )
                if tag in (None, child.tag) and same:
                    found.append(child)
                found += child.all(tag, **attributes)
        return found

    def inside(self, tag):
        """Whether an ancestor has this tag."""
        return self.parent is not None and (self.parent.tag == tag or self.parent.inside(tag))


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.root = self.at = Element("document", {})

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), self.at)
        self.at.children.append(element)
        if tag not in VOID:
            self.at = element

    def handle_startendtag(self, tag, attrs):
        self.at.children.append(Element(tag, dict(attrs), self.at))

    def handle_endtag(self, tag):
        assert tag == self.at.tag, f"</{tag}> ends <{self.at.tag}>"
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.children.append(data)


def read(page):
    """The document of a page, whose elements all end."""
    reader = Reader()
    reader.feed(page)
    assert reader.at is reader.root
    return reader.root
