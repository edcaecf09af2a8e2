// Package http01: where an answer would be looked for.
package http01

import "time"

type ChallengeOption func()

func ChallengePath(token string) string      { return "/.well-known/acme-challenge/" + token }
func SetDelay(time.Duration) ChallengeOption { return nil }
