// Package tlsalpn01: the protocol's name (RFC 8737), which nobody answers to.
package tlsalpn01

import (
	"time"

	"github.com/go-acme/lego/v4/certificate"
)

const ACMETLS1Protocol = "acme-tls/1"

type ChallengeOption func()

func SetDelay(time.Duration) ChallengeOption                    { return nil }
func ChallengeBlocks(_, _ string) (cert, key []byte, err error) { return nil, nil, certificate.ErrNone }
