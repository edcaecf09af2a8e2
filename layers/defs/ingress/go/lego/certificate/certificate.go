// Package certificate: what would be asked for.
package certificate

import "errors"

var ErrNone = errors.New("this program gets no certificates by ACME")

type (
	Resource struct {
		Domain                  string
		PrivateKey, Certificate []byte
	}
	ObtainRequest struct {
		Domains, EmailAddresses []string
		Bundle                  bool
		Profile, PreferredChain string
	}
	RenewOptions struct {
		Bundle                  bool
		EmailAddresses          []string
		Profile, PreferredChain string
	}
	Certifier struct{}
)

func (*Certifier) Obtain(ObtainRequest) (*Resource, error)                     { return nil, ErrNone }
func (*Certifier) RenewWithOptions(Resource, *RenewOptions) (*Resource, error) { return nil, ErrNone }
