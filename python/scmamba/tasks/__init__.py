"""What people ask for: AnnData in, the same AnnData plus results out."""

from .doublets import detect_doublets
from .embed import embed, embed_file
from .impute import impute, impute_file

__all__ = ["detect_doublets", "embed", "embed_file", "impute", "impute_file"]
