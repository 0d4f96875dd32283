"""What a setting may be, and which settings must fit each other."""


def known_settings():
    """{path: rule} of every setting, e.g. 'model.name'; imports them at the call."""
    from msm.configs.rules.settings import SETTINGS

    return SETTINGS
