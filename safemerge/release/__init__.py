"""The release report: what a person who signs reads, as one record and its HTML, Markdown and JSON forms.

Only :mod:`~safemerge.release.writing` touches files; the rest is pure: figures in, text out. All texts are
taken for hostile: they come from data and from the models that are judged.
"""
