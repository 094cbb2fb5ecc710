"""What the records say, a sentence a finding; docs/findings.md, the README's first lines and the report tell them."""
