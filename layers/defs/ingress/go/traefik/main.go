// Traefik with its two providers for Ingress objects and nothing else: what upstream's main adds (other providers, ACME, plugins, dashboard, telemetry,
// a look for newer versions) is not linked or never called. After upstream's cmd/traefik/traefik.go of v3.6.
package main

import (
	"context"
	"flag"
	"math"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/rs/zerolog/log"
	"github.com/traefik/paerser/types"
	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"github.com/traefik/traefik/v3/pkg/config/runtime"
	"github.com/traefik/traefik/v3/pkg/config/static"
	"github.com/traefik/traefik/v3/pkg/observability/metrics"
	"github.com/traefik/traefik/v3/pkg/ping"
	"github.com/traefik/traefik/v3/pkg/provider"
	"github.com/traefik/traefik/v3/pkg/provider/aggregator"
	"github.com/traefik/traefik/v3/pkg/provider/kubernetes/ingress"
	nginx "github.com/traefik/traefik/v3/pkg/provider/kubernetes/ingress-nginx"
	internal "github.com/traefik/traefik/v3/pkg/provider/traefik"
	"github.com/traefik/traefik/v3/pkg/proxy/httputil"
	"github.com/traefik/traefik/v3/pkg/safe"
	"github.com/traefik/traefik/v3/pkg/server"
	"github.com/traefik/traefik/v3/pkg/server/middleware"
	"github.com/traefik/traefik/v3/pkg/server/service"
	"github.com/traefik/traefik/v3/pkg/tcp"
	"github.com/traefik/traefik/v3/pkg/tls"
)

var (
	web     = flag.String("web", ":8000", "address for HTTP")
	secure  = flag.String("secure", ":8443", "address for HTTPS and for TLS that goes through")
	health  = flag.String("health", ":8080", "address of /ping")
	class   = flag.String("class", "traefik", "ingress class")
	forward = flag.String("nginx-class", "nginx", "ingress class of what is written for ingress-nginx")
	publish = flag.String("service", "", "NAMESPACE/NAME of the Service whose address the Ingress objects get")
	verbose = flag.Bool("verbose", false, "tell of each change")
)

func main() {
	flag.Parse()
	zerolog.SetGlobalLevel(map[bool]zerolog.Level{true: zerolog.DebugLevel, false: zerolog.WarnLevel}[*verbose])
	// What traefik hands on by context would say nothing otherwise.
	zerolog.DefaultContextLogger = &log.Logger
	if err := run(); err != nil {
		log.Fatal().Err(err).Send()
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	config := configuration()
	config.Ping.WithContext(ctx)
	served, err := build(config)
	if err != nil {
		return err
	}
	served.Start(ctx)
	defer served.Close()
	served.Wait()
	return nil
}

func configuration() *static.Configuration {
	entryPoint := func(address string) *static.EntryPoint {
		point := &static.EntryPoint{Address: address}
		point.SetDefaults()
		return point
	}
	plain := &ingress.Provider{IngressClass: *class}
	if *publish != "" {
		plain.IngressEndpoint = &ingress.EndpointIngress{PublishedService: *publish}
	}
	annotated := annotatedFor(*forward)
	healthy := &ping.Handler{}
	healthy.SetDefaults()
	plainText, encrypted := entryPoint(*web), entryPoint(*secure)
	encrypted.HTTP.TLS = &static.TLSConfig{}
	config := &static.Configuration{
		Global:      &static.Global{},
		EntryPoints: static.EntryPoints{"web": plainText, "websecure": encrypted, healthy.EntryPoint: entryPoint(*health)},
		Providers:   &static.Providers{KubernetesIngress: plain, KubernetesIngressNGINX: annotated},
		Ping:        healthy,
		// What its internal provider makes the transports of that all others name.
		ServersTransport:    &static.ServersTransport{MaxIdleConnsPerHost: 200},
		TCPServersTransport: &static.TCPServersTransport{DialTimeout: types.Duration(30 * time.Second), DialKeepAlive: types.Duration(15 * time.Second)},
	}
	config.Providers.ProvidersThrottleDuration = types.Duration(2 * time.Second)
	config.SetEffectiveConfiguration()
	return config
}

// The provider for Ingress objects with ingress-nginx's annotations, of one class.
func annotatedFor(class string) *nginx.Provider {
	made := &nginx.Provider{PublishService: *publish}
	made.SetDefaults()
	made.IngressClass, made.IngressClassByName = class, true
	return made
}

// The class of virtual clusters' APIs below a path.
const virtual = "virtual-apis"

// Serves that class. Its Ingress objects have the path `PREFIX(/|$)(.*)` and the annotation `rewrite-target: /$2`, as ingress-nginx's documentation has it; this
// version of the provider does not know that annotation.
type below struct{ *nginx.Provider }

// Whole names and no signs of patterns before the end, as the platform writes it.
var prefixed = regexp.MustCompile(`PathRegexp\("\^((?:/[-\w]+)+)\(/\|\$\)\(\.\*\)"\)$`)

func (b below) Provide(out chan<- dynamic.Message, pool *safe.Pool) error {
	made := make(chan dynamic.Message)
	pool.GoCtx(func(ctx context.Context) {
		for {
			select {
			case <-ctx.Done():
				return
			case message := <-made:
				// Under the provider's own name it would take the place of the other class.
				message.ProviderName = "below"
				strip(message.Configuration.HTTP)
				select {
				case <-ctx.Done():
				case out <- message:
				}
			}
		}
	})
	return b.Provider.Provide(made, pool)
}

// Takes the prefix off each route, and drops routes without one. These requests carry tokens: they come by TLS alone, and no longer rule of another class, such
// as one that a virtual cluster's user writes for the same host, shall get them.
func strip(config *dynamic.HTTPConfiguration) {
	for name, router := range config.Routers {
		found := prefixed.FindStringSubmatch(router.Rule)
		if found == nil {
			delete(config.Routers, name)
			continue
		}
		config.Middlewares[name] = &dynamic.Middleware{StripPrefix: &dynamic.StripPrefix{Prefixes: []string{found[1]}}}
		router.EntryPoints, router.Middlewares, router.Priority = []string{"websecure"}, []string{name}, math.MaxInt32
	}
}

func build(config *static.Configuration) (*server.Server, error) {
	pool, providers := safe.NewPool(context.Background()), aggregator.NewProviderAggregator(*config.Providers)
	apis := annotatedFor(virtual)
	// Not the other class's, which would get these Ingress objects as well.
	apis.ControllerClass = "chasi-bod.io/virtual-apis"
	for _, one := range []provider.Provider{below{apis}, internal.New(*config)} {
		if err := providers.AddProvider(one); err != nil {
			return nil, err
		}
	}
	certificates, registry := tls.NewManager(nil), metrics.NewMultiRegistry(nil)
	pool.GoCtx(certificates.Run)
	observed := middleware.NewObservabilityMgr(*config, registry, nil, nil, nil, nil)
	points, err := server.NewTCPEntryPoints(config.EntryPoints, nil, registry)
	if err != nil {
		return nil, err
	}
	transports, dialers := service.NewTransportManager(nil), tcp.NewDialerManager(nil)
	proxies := httputil.NewProxyBuilder(transports, nil)
	services := service.NewManagerFactory(*config, pool, observed, transports, proxies, nil)
	routers, err := server.NewRouterFactory(*config, services, certificates, observed, nil, dialers)
	if err != nil {
		return nil, err
	}
	watcher := server.NewConfigurationWatcher(pool, providers, []string{"web", "websecure"}, "internal")
	watcher.AddListener(func(now dynamic.Configuration) {
		certificates.UpdateConfigs(context.Background(), now.TLS.Stores, now.TLS.Options, now.TLS.Certificates)
		transports.Update(now.HTTP.ServersTransports)
		proxies.Update(now.HTTP.ServersTransports)
		dialers.Update(now.TCP.ServersTransports)
		made, _ := routers.CreateRouters(runtime.NewConfig(now))
		points.Switch(made)
	})
	return server.NewServer(pool, points, server.UDPEntryPoints{}, watcher, observed), nil
}

func init() {
	log.Logger = zerolog.New(os.Stderr).With().Timestamp().Logger()
}
