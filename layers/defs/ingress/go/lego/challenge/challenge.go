// Package challenge: who would answer.
package challenge

import "time"

type Provider interface {
	Present(domain, token, keyAuth string) error
	CleanUp(domain, token, keyAuth string) error
}

type ProviderTimeout interface {
	Provider
	Timeout() (timeout, interval time.Duration)
}
