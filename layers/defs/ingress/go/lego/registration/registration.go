// Package registration: nobody is registered.
package registration

import "github.com/go-acme/lego/v4/certificate"

type (
	Resource           struct{ URI string }
	RegisterOptions    struct{ TermsOfServiceAgreed bool }
	RegisterEABOptions struct {
		TermsOfServiceAgreed bool
		Kid, HmacEncoded     string
	}
	Registrar struct{}
)

func (*Registrar) Register(RegisterOptions) (*Resource, error) { return nil, certificate.ErrNone }
func (*Registrar) RegisterWithExternalAccountBinding(RegisterEABOptions) (*Resource, error) {
	return nil, certificate.ErrNone
}
