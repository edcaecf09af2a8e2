// Package lego stands in for an ACME client: traefik's configuration names its types, and the real one brings some hundred DNS services' libraries.
// Written from traefik's uses alone; whoever asks for a certificate gets an error.
package lego

import (
	"crypto/x509"
	"net/http"

	"github.com/go-acme/lego/v4/certcrypto"
	"github.com/go-acme/lego/v4/certificate"
	"github.com/go-acme/lego/v4/challenge"
	"github.com/go-acme/lego/v4/challenge/dns01"
	"github.com/go-acme/lego/v4/challenge/http01"
	"github.com/go-acme/lego/v4/challenge/tlsalpn01"
	"github.com/go-acme/lego/v4/registration"
)

const LEDirectoryProduction = ""

type (
	Config struct {
		CADirURL, UserAgent string
		HTTPClient          *http.Client
		Certificate         struct {
			KeyType           certcrypto.KeyType
			DisableCommonName bool
		}
	}
	Client struct {
		Certificate  *certificate.Certifier
		Challenge    *Solvers
		Registration *registration.Registrar
	}
	Solvers struct{}
)

func NewConfig(any) *Config              { return &Config{} }
func NewClient(*Config) (*Client, error) { return nil, certificate.ErrNone }
func CreateCertPool([]string, bool) (*x509.CertPool, error) {
	return nil, certificate.ErrNone
}

func (*Solvers) SetDNS01Provider(challenge.Provider, ...dns01.ChallengeOption) error {
	return certificate.ErrNone
}

func (*Solvers) SetHTTP01Provider(challenge.Provider, ...http01.ChallengeOption) error {
	return certificate.ErrNone
}

func (*Solvers) SetTLSALPN01Provider(challenge.Provider, ...tlsalpn01.ChallengeOption) error {
	return certificate.ErrNone
}
