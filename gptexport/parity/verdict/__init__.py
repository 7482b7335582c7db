"""Numbers become a judgement: the gates, the verdict with its reasons, and the certificate of it that is recorded."""
